"""Results with another value in any place: a page, or one line that names the file."""

import contextlib
import copy
import io
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_runs import write_runs

from scripts import report
from scripts.ablate.tables import compare

BAD = st.sampled_from([None, 0, -1, 1e30, math.nan, 10**25, True, "", "nonsense", [], {}, [None]])
INTERVAL = {"mean": 1.0, "low": 0.5, "high": 1.5}


def ablation():
    names = [f"{m}, default: refined" for m in ("hybrid", "lass")] + ["parts: a", "parts: b"]
    sources = ("bass", "drums")
    rows = [
        {
            "row": name,
            "sdr": dict.fromkeys((*sources, "mean"), INTERVAL),
            "chunks": {s: [float(i), 2.0, 3.5] for s in sources},
            "seed_spread": 0.1,
            "seconds": 2.0,
        }
        for i, name in enumerate(names)
    ]
    return {"rows": rows, "comparisons": list(compare(rows))}


def places(value, path=()):
    """Of every value inside."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2])
    if isinstance(value, dict | list):
        for key, inner in items:
            yield from (
                places(inner, (*path, key)) if isinstance(inner, dict | list) else [(*path, key)]
            )


def changed(content, place, value):
    if not place:
        return value
    content = inner = copy.deepcopy(content)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return content


def refused(main, flags, name):
    """Whether the program refuses, in one line that names the file."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(flags)
    if status:
        assert status == 1 and said.getvalue().startswith("error: ")
        assert said.getvalue().count("\n") == 1 and name in said.getvalue()
    return bool(status)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("ablation") / "ablation.json"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = write_runs(tmp_path_factory.mktemp("runs"))
    (folder / "ablation").mkdir()
    return folder


@settings(max_examples=8)
@given(st.data(), BAD)
def test_a_report_is_written_or_the_file_is_named(runs, data, value):
    results = runs / "results.json"
    content = json.loads(results.read_text())
    place = data.draw(st.sampled_from(list(places(content))))
    page = runs / "report.html"
    flags = ["--runs", str(runs), "--output", str(page)]
    page.unlink(missing_ok=True)
    try:
        results.write_text(json.dumps(changed(content, place, value)))
        assert refused(report.main, flags, results.name) != page.exists()
    finally:
        results.write_text(json.dumps(content))


@settings(max_examples=12)
@given(st.sampled_from(list(places(ablation()))), BAD)
def test_a_report_with_a_damaged_ablation_names_it(runs, place, value):
    stored = runs / "ablation/ablation.json"
    stored.write_text(json.dumps(changed(ablation(), place, value)))
    with pytest.MonkeyPatch.context() as patch:  # players take long
        patch.setattr("scripts.report.program.listen", lambda *_: "")
        refused(report.main, ["--runs", str(runs), "--output", str(runs / "r.html")], stored.name)
    stored.unlink()
