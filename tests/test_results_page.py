"""The figures in README.md and docs/results.md are those of the measurement that is kept beside."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from jukebox_core.separation.statistics import bootstrap_mean, paired_difference
from scripts._ablation_plots import shown
from scripts.ablate import compare, difference_cells, interval_cell, kind_of

ROOT = Path(__file__).parent.parent
NAMES = ("bass", "drums", "mean")
MEASURED = {
    name: json.loads((ROOT / "docs" / "data" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("ablation", "ablation_second")
}
README = {
    "**Hybrid, what you get**": "hybrid, default: refined",
    "LQ-VAE, what you get": "lqvae, default: refined",
    "LASS, what you get": "lass, default: refined",
    "Hybrid as published, best of 32": "hybrid, published: oracle, raw",
    "LQ-VAE as published, best of 32": "lqvae, published: oracle, raw",
    "LASS as published, best of 32": "lass, published: oracle, raw",
    "the mixture itself": "baseline: mixture",
    "NMF (blind)": "baseline: NMF",
    "mask estimator trained on the same songs": "baseline: supervised mask (LSTM)",
}


def cells(text):
    """{first cell: the others} of all tables' rows."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: [cell.strip() for cell in row[1:]] for row in rows}


def halves():
    """The page's text up to the second test set, and from there on."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    return page.split("## A second test set")


def per_chunk(line):
    return np.array([line["chunks"][source] for source in ("bass", "drums")])


@pytest.mark.parametrize("measured", MEASURED.values(), ids=MEASURED)
def test_every_mean_and_difference_is_that_of_the_chunks(measured):
    lines = {line["row"]: line for line in measured["rows"]}
    for line in lines.values():
        values = [*per_chunk(line), per_chunk(line).mean(0)]
        for name, column in zip(NAMES, values, strict=True):
            assert line["sdr"][name] == pytest.approx(bootstrap_mean(column)._asdict())
    for item in measured["comparisons"]:
        first, second = (per_chunk(lines[item[key]]) for key in ("first", "second"))
        pairs = zip([*first, first.mean(0)], [*second, second.mean(0)], strict=True)
        for name, (a, b) in zip(NAMES, pairs, strict=True):
            expected = paired_difference(a, b)._asdict()
            assert item["difference"][name] == pytest.approx(expected)
    assert measured["comparisons"] == list(compare(measured["rows"]))  # no question is left out


def test_the_page_shows_what_was_measured():
    for text, name in zip(halves(), MEASURED, strict=True):
        table = cells(text)
        for line in MEASURED[name]["rows"]:
            row = table[shown(line["row"])]
            assert row[:3] == [interval_cell(line["sdr"][n]) for n in NAMES]
            spread, seconds = line["seed_spread"], line["seconds"]
            assert row[3] == ("-" if spread is None else f"{spread:.2f}")
            assert row[4] == ("-" if seconds is None else f"{seconds:.1f}")
        for item in MEASURED[name]["comparisons"] if name == "ablation" else ():
            label, *expected = difference_cells(item)
            assert table[label] == expected
            assert expected == [interval_cell(item["difference"][n], "+") for n in NAMES]


def test_the_steps_lead_from_the_published_system_to_the_default():
    """Every row of the parts less the one before; the sum is the whole way."""
    lines = {line["row"]: line for line in MEASURED["ablation"]["rows"]}
    table = cells(halves()[0])
    rows = [row for row in lines if row.startswith("parts:")]
    for before, after in pairwise(rows):
        a, b = (per_chunk(lines[row]) for row in (after, before))
        pairs = zip([*a, a.mean(0)], [*b, b.mean(0)], strict=True)
        gaps = [paired_difference(x, y) for x, y in pairs]
        shown_gaps = [interval_cell(gap._asdict(), "+") for gap in gaps]
        assert table[after.removeprefix("parts: ")] == shown_gaps
    steps = [i for i in MEASURED["ablation"]["comparisons"] if kind_of(i) == "step"]
    assert len(steps) == len(rows) - 1
    (whole,) = (
        item["difference"]["mean"]["mean"]
        for item in MEASURED["ablation"]["comparisons"]
        if (item["first"], item["second"])
        == ("hybrid, default: refined", "hybrid, published: refined")
    )
    assert sum(item["difference"]["mean"]["mean"] for item in steps) == pytest.approx(whole)


def test_every_interval_in_prose_is_measured():
    """In the text of each section, differences with intervals are those of its JSON."""
    training = json.loads((ROOT / "docs" / "data" / "training.json").read_text(encoding="utf-8"))
    gaps = {
        name: [gap for item in kept["comparisons"] for gap in item["difference"].values()]
        for name, kept in MEASURED.items()
    }
    gaps["training"] = [row["scores"]["refined"]["to_base"] for row in training["variants"]]
    of = {"A second test set": "ablation_second", "Codec and prior choices": "training"}
    number = r"[-+−]\d\.\d\d"
    seen = dict.fromkeys(gaps, 0)
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for section in page.split("\n## "):
        name = of.get(section.splitlines()[0], "ablation")
        measured = {interval_cell(gap, "+") for gap in gaps[name]}
        prose = " ".join(line for line in section.splitlines() if not line.startswith("|"))
        prose = " ".join(prose.split())
        for told in re.findall(rf"{number} \[{number}, {number}\]", prose):
            assert told.replace("−", "-") in measured, (section.splitlines()[0], told)
            seen[name] += 1
    assert min(seen.values()) >= 8


def test_the_claims_about_the_second_set():
    """Each number of its prose is that of the comparison that the sentence is about."""
    items = {(i["first"], i["second"]): i for i in MEASURED["ablation_second"]["comparisons"]}
    text = " ".join(halves()[1].split("| baseline: ideal ratio mask")[1].split("\n## ")[0].split())
    told = [gap.replace("−", "-") for gap in re.findall(r"[+−]\d\.\d\d \[[^]]*\]", text)]
    refined, published = "{}, default: refined", "{}, published: refined"
    oracle = "{}, {}: oracle, raw"
    expected = [
        (refined.format("hybrid"), "baseline: mixture"),
        (refined.format("hybrid"), oracle.format("hybrid", "published")),
        (refined.format("hybrid"), "baseline: NMF"),
        *((refined.format(m), published.format(m)) for m in ("hybrid", "lqvae", "lass")),
        *((refined.format("hybrid"), refined.format(m)) for m in ("lass", "lqvae")),
        *(
            (oracle.format("hybrid", kind), oracle.format(m, kind))
            for kind, m in (("published", "lqvae"), ("published", "lass"), ("default", "lass"))
        ),
    ]
    assert told == [interval_cell(items[pair]["difference"]["mean"], "+") for pair in expected]


def test_the_page_shows_what_training_choices_were_worth():
    table = cells((ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "data" / "training.json").read_text(encoding="utf-8")
    for row in json.loads(text)["variants"]:
        shown_row = table[row["variant"]]
        bits, scores = row["bits_per_code"], row["scores"]
        expected = [row["codec_sdr_sources"], row["codec_sdr_mixtures"], *bits.values()]
        expected += [scores["oracle, raw"]["sdr"], scores["refined"]["sdr"]]
        assert [*shown_row[:2], *shown_row[3:7]] == [f"{value:.2f}" for value in expected]
        assert shown_row[2] == f"{row['perplexity_mixtures']:.0f}"
        if row["variant"] != "base":
            assert shown_row[7] == interval_cell(scores["refined"]["to_base"], "+")


def test_the_readme_shows_what_was_measured():
    table = cells((ROOT / "README.md").read_text(encoding="utf-8"))
    lines = {line["row"]: line for line in MEASURED["ablation"]["rows"]}
    for name, row in README.items():
        expected = [f"{lines[row]['sdr'][source]['mean']:.1f}" for source in ("bass", "drums")]
        assert table[name][:2] == expected
        assert ("yes" in table[name][2:]) is ("oracle" in row)


def test_the_claims_of_the_first_lines():
    """3 dB above the oracle's picks among raw candidates and above the mixture, per source."""
    items = {
        (i["first"], i["second"]): i["difference"] for i in MEASURED["ablation"]["comparisons"]
    }
    for second in (
        "hybrid, published: oracle, raw",
        "hybrid, default: oracle, raw",
        "baseline: mixture",
    ):
        for source in ("bass", "drums"):
            assert items["hybrid, default: refined", second][source]["mean"] >= 3
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").split("\n\n")[1]
    found = re.findall(r"[+−]\d\.\d\d \[[^]]*\]", text)
    expected = [
        ("default: refined", "lqvae"),
        ("default: refined", "lass"),
        ("published: oracle, raw", "lqvae"),
        ("published: oracle, raw", "lass"),
    ]
    assert found == [
        interval_cell(items[f"hybrid, {row}", f"{other}, {row}"]["mean"], "+").replace("-", "−")
        for row, other in expected
    ]
