"""The figures in README.md and docs/results.md are those of the measurement that is kept beside."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jukebox_core.separation.statistics import bootstrap_mean, paired_difference
from scripts._ablation_plots import shown
from scripts.ablate import _cell

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
        first, second = (per_chunk(lines[item[key]]).mean(0) for key in ("first", "second"))
        expected = paired_difference(first, second)._asdict()
        assert item["difference"]["mean"] == pytest.approx(expected)


def test_the_page_shows_what_was_measured():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    first, second = page.split("## A second test set")
    for text, name in ((first, "ablation"), (second, "ablation_second")):
        table = cells(text)
        for line in MEASURED[name]["rows"]:
            assert table[shown(line["row"])][:3] == [_cell(line["sdr"][n]) for n in NAMES]
        for item in MEASURED[name]["comparisons"] if name == "ablation" else ():
            row = table[f"{shown(item['first'])} − {shown(item['second'])}"]
            assert row == [_cell(item["difference"][n], "+") for n in NAMES]


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
            assert shown_row[7] == _cell(scores["refined"]["to_base"], "+")


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
        _cell(items[f"hybrid, {row}", f"{other}, {row}"]["mean"], "+").replace("-", "−")
        for row, other in expected
    ]
