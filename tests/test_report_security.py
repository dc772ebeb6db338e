"""scripts.report: names and values that someone wrote into the files of a run stay text."""

import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from functools import partial

import numpy as np
import pytest
from made_up_runs import write_runs
from test_report import Elements

from jukebox_core.files import write_json
from scripts import report
from scripts.report import program

MARKUP = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)" x=\'',
    "</style></title></svg><img src=x onerror=alert(1)>",
    "--><!-- ]]> <![CDATA[ &lt;script&gt; &#60;b&#62;",
    "[link](javascript:alert(1)) ![](https://example.com/a.png)",
    "$\\frac{<b>}{$ $$ \\input{/etc/passwd}",
    "var(--x);}*{background:url(https://example.com)}",
]
SOME = "".join(MARKUP)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with an example, and an ablation."""
    folder = write_runs(tmp_path_factory.mktemp("runs"))
    interval = {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 3}
    sdr = dict.fromkeys(("bass", "drums", "mean"), interval)
    rows = [{"row": f"parts: {name}", "sdr": sdr} for name in ("a", "b")]
    differences = [{"first": "parts: a", "second": "parts: b", "difference": sdr}]
    study = {"chunks": 6, "candidates": 2, "seeds": [0]}
    write_json(
        folder / "ablation" / "ablation.json",
        {"rows": rows, "comparisons": differences, "study": study},
    )
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A copy to change, without most of its audio: its players take long."""
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    for path in (folder / "results_audio").iterdir():
        if "mixture" not in path.name:
            path.unlink()
    return folder


def edited(run, change, name="results.json"):
    path = run / name
    content = json.loads(path.read_text(encoding="utf-8"))
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed), encoding="utf-8")


def shape(page):
    """[(tag, names of attributes)], their values that a browser would load or run."""
    elements = Elements(page)
    assert elements.open == []
    loaded = [
        value
        for _, attributes in elements.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "data", "action", "srcdoc", "poster", "srcset")
        and not value.startswith(("data:", "#"))
    ]
    assert not loaded
    return [(tag, sorted(attributes)) for tag, attributes in elements.tags if tag != "use"]


def replaced(value, old, new):
    """Every text and key that contains `old`, with `new` in its place."""
    if isinstance(value, dict):
        return {replaced(k, old, new): replaced(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [replaced(item, old, new) for item in value]
    return value.replace(old, new) if isinstance(value, str) else value


def test_markup_is_text_wherever_a_run_holds_names(run):
    plain = report.build_page(run)
    for old in ("Track0000", "a note", "made-up", "python -m", "SDR over"):
        edited(run, partial(replaced, old=old, new=f"{old}{SOME}"))
    named = partial(replaced, old="parts: a", new=f"parts: {SOME}")
    edited(run, named, "ablation/ablation.json")
    for family in (run / "models").iterdir():
        (family / "prior_bass").rename(family / f"prior_{SOME.replace('/', '')[:200]}")
    page = report.build_page(run)
    assert {tag for tag, _ in shape(page)} == {tag for tag, _ in shape(plain)}
    assert attributes(page) == attributes(plain)
    assert page.count("<script>") == plain.count("<script>") == 1
    assert Elements(page).text.count(SOME) >= 6


def test_markup_in_the_names_of_sources_is_text(run):
    edited(run, lambda results: results["meta"].update(examples=[]))
    plain = report.build_page(run)
    edited(run, partial(replaced, old="bass", new=SOME))
    edited(run, partial(replaced, old="bass", new=SOME), "ablation/ablation.json")
    page = report.build_page(run)
    assert {tag for tag, _ in shape(page)} == {tag for tag, _ in shape(plain)}
    assert attributes(page) == attributes(plain)
    assert SOME in Elements(page).text


def attributes(page):
    return {name for _, names in shape(page) for name in names}


def test_markup_in_the_places_of_numbers_is_text_or_refused(run, monkeypatch):
    """Every leaf of the meta data, of an example, a row and a chunk, and of the ablation."""
    for slow in ("_curves", "_scatters"):
        monkeypatch.setattr(program, slow, lambda _: "")
    plain = report.build_page(run)

    def leaves(value, path=()):
        items = value.items() if isinstance(value, dict) else enumerate(value[:1])
        for key, inner in items:
            if isinstance(inner, dict | list):
                yield from leaves(inner, (*path, key))
            else:
                yield (*path, key)

    for name in ("results.json", "ablation/ablation.json"):
        content = (run / name).read_text(encoding="utf-8")
        for path in leaves(json.loads(content)):
            changed = inner = json.loads(content)
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = SOME
            if "examples" not in path and "meta" in changed:
                changed["meta"]["examples"] = []  # players take long
            (run / name).write_text(json.dumps(changed), encoding="utf-8")
            try:
                page = report.build_page(run)
            except ValueError as error:
                assert str(run / name) in str(error)
            else:
                assert {tag for tag, _ in shape(page)} <= {tag for tag, _ in shape(plain)}
                assert attributes(page) <= attributes(plain)
        (run / name).write_text(content, encoding="utf-8")


@pytest.fixture
def outside(run):
    """A song that is not of the run."""
    path = run.parent / "private.flac"
    shutil.copy(run / "results_audio" / "00_mixture.flac", path)
    return path


def point(run, path, place):
    def change(results):
        (example,) = results["meta"]["examples"]
        if place == "mixture":
            example["files"]["mixture"] = path
        elif place == "uncertainty":
            example["uncertainty"]["hybrid"] = path
        else:
            example["files"][place]["bass"] = path

    edited(run, change)


@pytest.mark.parametrize("place", ["mixture", "truth", "uncertainty"])
@pytest.mark.parametrize("kind", ["absolute", "above", "link", "link of a folder"])
def test_files_outside_the_run_are_not_embedded(run, outside, capsys, monkeypatch, place, kind):
    audio = run / "results_audio"
    (audio / "link.flac").symlink_to(outside)
    (audio / "folder").symlink_to(run.parent)
    path = {
        "absolute": str(outside),
        "above": "results_audio/../../private.flac",
        "link": "results_audio/link.flac",
        "link of a folder": "results_audio/folder/private.flac",
    }[kind]
    point(run, path, place)
    page = run / "report.html"
    monkeypatch.setattr(program, "_scatters", lambda _: "")  # take long
    assert report.main(["--runs", str(run), "--output", str(page)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "results.json" in line and "outside the folder" in line and not page.exists()


def test_a_pickle_in_place_of_a_picture_is_not_loaded(run, capsys, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    np.savez(run / "results_audio" / "evil.npz", uncertainty=np.array(Evil()), hertz=1.0)
    (tmp_path / "made").unlink(missing_ok=True)
    point(run, "results_audio/evil.npz", "uncertainty")
    assert report.main(["--runs", str(run), "--output", str(run / "r.html")]) == 1
    assert "results.json" in capsys.readouterr().err and not (tmp_path / "made").exists()


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("value", ["1e999", "1e308", "NaN", "9" * 5000, DEEP])
@pytest.mark.parametrize("place", ['"mean": ', '"start": ', '"sdr": '])
def test_numbers_without_bounds_are_shown_or_refused(run, monkeypatch, place, value):
    monkeypatch.setattr(program, "_curves", lambda _: "")
    for name in ("results.json", "ablation/ablation.json"):
        path = run / name
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(f"{place}[-.\\w]+", place + value, text), encoding="utf-8")
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        status = report.main(["--runs", str(run), "--output", str(run / "r.html")])
    assert status == 0 or re.fullmatch("error: .*json.*\n", said.getvalue())
    if status == 0:
        assert (run / "r.html").stat().st_size < 5_000_000


def test_the_policy_allows_the_pages_own_script_alone(made):
    policy = next(a["content"] for t, a in Elements(report.build_page(made)).tags if "content" in a)
    scripts = re.search("script-src ([^;]*)", policy)[1]
    assert re.fullmatch("'sha256-[A-Za-z0-9+/]{43}='", scripts)
    assert "base-uri 'none'" in policy and "form-action 'none'" in policy
