"""The figures in README.md and docs/results.md are those of the measurement that is kept beside."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from jukebox_core.evaluation.bootstrap import bootstrap_mean, paired_difference
from scripts._results import interval_cell, row_name
from scripts.ablate.tables import compare, difference_cells, kind_of
from scripts.compare_models import Comparison

ROOT = Path(__file__).parent.parent
NAMES = ("bass", "drums", "mean")


def kept(name):
    """The content of a measurement's JSON."""
    return json.loads((ROOT / "docs" / "data" / f"{name}.json").read_text(encoding="utf-8"))


PUBLISHED = ("confirmation", "ablation", "ablation_second")
NEURAL = ("neural", "neural_methods", "neural_midi", "neural_real")
SHIPPED = tuple(f"pretrained_{n}" for n in ("real", "fresh", "midi", "multitrack", "plain"))
MORE = ("three_sources", "three_sources_real", "four_sources_real")
SONG = ("song_fresh", "song_real")
AGAINST_TWO = {
    "three_against_two": "three_against_two",
    "three_against_two_real": "three_against_two",
    "song_against_pairs": "song_against_pairs",
    "song_against_pairs_real": "song_against_pairs",
}
"""{comparison of models: the one that names its section}"""
MEASURED = {name: kept(name) for name in (*PUBLISHED, *NEURAL, *SHIPPED, *MORE, *SONG)}
COST = kept("cost")
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


WHAT_YOU_GET = {
    "`hybrid-neural`, what you get": "hybrid-neural, default: mask network",
    "supervised mask estimator, equal time": "baseline: supervised mask (LSTM, equal time)",
    "NMF": "baseline: NMF",
    "mixture": "baseline: mixture",
}
SETS = ("pretrained_real", "pretrained_fresh", "pretrained_midi", "pretrained_multitrack")
"""The models that ship: real excerpts, generated songs, MIDI songs, a recording."""
UNTOUCHED = "An untouched test set, after a second training"
OF = {
    "# Results": "confirmation",
    UNTOUCHED: "confirmation",
    "A second test set": "ablation_second",
    "Neural likelihood and mask network": "neural",
    "What priors and counts add to the neural likelihood": "neural_methods",
    "MIDI songs with the neural likelihood": "neural_midi",
    "Slakh2100 excerpts, models of plain songs": "neural_real",
    "Models that ship": "pretrained_real",
    "Slakh2100 excerpts": "pretrained_real",
    "Generated songs": "pretrained_fresh",
    "MIDI songs": "pretrained_midi",
    "A recording": "pretrained_multitrack",
    "Plain songs": "pretrained_plain",
    "Whole songs": "song_fresh",
    "Whole songs on Slakh2100 excerpts": "song_real",
    "Bass and drums of a whole song, models that ship": "song_against_pairs",
    "Three sources": "three_sources",
    "Three sources on Slakh2100 excerpts": "three_sources_real",
    "Four sources on Slakh2100 excerpts": "four_sources_real",
    "Bass and drums of a whole song": "three_against_two",
    "Codec and prior choices": "training",
}
"""Whose figures a section tells, by its heading; the others tell the first test set's."""


def sections():
    """(heading, text) of the page, in order."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    return [(text.splitlines()[0], text) for text in page.split("\n## ")]


def told_of(name):
    """All text about one of the measurements."""
    return "\n".join(text for heading, text in sections() if OF.get(heading, "ablation") == name)


def per_chunk(line):
    """SDR of every chunk, [sources, chunks]; NaN for silence."""
    return np.array([*line["chunks"].values()], dtype=float)


def columns(line):
    """{source: SDR of every chunk}, and the mean of the sources that sound."""
    values = per_chunk(line)
    means = np.nanmean(values, 0) if len(values) > 2 else values.mean(0)
    return dict(zip((*line["chunks"], "mean"), (*values, means), strict=True))


@pytest.mark.parametrize("measured", MEASURED.values(), ids=MEASURED)
def test_every_mean_and_difference_is_that_of_the_chunks(measured):
    lines = {line["row"]: line for line in measured["rows"]}
    for line in lines.values():
        assert [*line["sdr"]] == [*columns(line)]
        for name, column in columns(line).items():
            assert line["sdr"][name] == pytest.approx(
                bootstrap_mean(column, groups=line.get("songs"))._asdict()
            )
    for item in measured["comparisons"]:
        first, second = (columns(lines[item[key]]) for key in ("first", "second"))
        for name in first:
            songs = lines[item["first"]].get("songs")
            expected = paired_difference(first[name], second[name], songs)._asdict()
            assert item["difference"][name] == pytest.approx(expected)
    assert measured["comparisons"] == list(compare(measured["rows"]))  # no question is left out


def test_the_page_shows_what_was_measured():
    for name in MEASURED:
        table = cells(told_of(name))
        for line in MEASURED[name]["rows"]:
            row = table[row_name(line["row"])]
            *scores, spread, seconds = row
            assert scores == [interval_cell(each) for each in line["sdr"].values()]
            assert spread == ("-" if line["seed_spread"] is None else f"{line['seed_spread']:.2f}")
            assert seconds == ("-" if line["seconds"] is None else f"{line['seconds']:.1f}")
        for item in MEASURED[name]["comparisons"] if name != "ablation_second" else ():
            label, *expected = difference_cells(item)
            shows_some = name == "neural_methods" or name in (*SHIPPED, *MORE, *SONG)
            if shows_some and label not in table:
                continue
            assert table[label] == expected
            assert expected == [interval_cell(gap, "+") for gap in item["difference"].values()]


def test_the_steps_lead_from_the_published_system_to_the_default():
    """Every row of the parts less the one before; the sum is the whole way."""
    lines = {line["row"]: line for line in MEASURED["ablation"]["rows"]}
    table = cells(told_of("ablation"))
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
    training = [row for n in ("training", "training_levels") for row in kept(n)["variants"]]
    gaps = {
        name: [gap for item in measured["comparisons"] for gap in item["difference"].values()]
        for name, measured in MEASURED.items()
    }
    gaps["training"] = [row["scores"]["refined"]["to_base"] for row in training]
    for name, section in AGAINST_TWO.items():
        differences = (item["difference"] for item in kept(name)["differences"])
        gaps.setdefault(section, []).extend(g for each in differences for g in each.values())
    number = r"[-+−]\d\.\d\d"
    seen = dict.fromkeys(gaps, 0)
    for heading, section in sections():
        name = OF.get(heading, "ablation")
        measured = {interval_cell(gap, "+") for gap in gaps[name]}
        prose = " ".join(line for line in section.splitlines() if not line.startswith("|"))
        prose = " ".join(prose.split())
        for told in re.findall(rf"{number} \[{number}, {number}\]", prose):
            assert told.replace("−", "-") in measured, (heading, told)
            seen[name] += 1
    assert min(seen[name] for name in (*PUBLISHED, "training")) >= 8


@pytest.mark.parametrize("name", AGAINST_TWO)
def test_models_of_three_and_of_two_sources(name):
    """The tables are those of the chunks, and the page shows them."""
    content = kept(name)
    scores = {row["models"]: per_chunk(row) for row in content["rows"]}
    table = Comparison([*content["rows"][0]["chunks"]], scores, content["songs"])
    again = table.content()
    for kind, field in (("rows", "sdr"), ("differences", "difference")):
        for found, expected in zip(content[kind], again[kind], strict=True):
            for source, interval in expected[field].items():
                assert found[field][source] == pytest.approx(interval)
    shown = told_of(AGAINST_TWO[name])
    (gap,) = content["differences"]
    for each in (*(row["sdr"] for row in content["rows"]), gap["difference"]):
        signs = "+" if each is gap["difference"] else ""
        assert " | ".join(interval_cell(x, signs) for x in each.values()) in shown


def test_the_claims_about_the_second_set():
    """Each number of its prose is that of the comparison that the sentence is about."""
    items = {(i["first"], i["second"]): i for i in MEASURED["ablation_second"]["comparisons"]}
    text = told_of("ablation_second").split("| baseline: ideal ratio mask")[1].split("\n## ")[0]
    text = " ".join(text.split())
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


@pytest.mark.parametrize("name", ["training", "training_levels"])
def test_the_page_shows_what_training_choices_were_worth(name):
    (section,) = (text for heading, text in sections() if heading == "Codec and prior choices")
    table = cells(section.split("### The top level alone")[name == "training_levels"])
    for row in kept(name)["variants"]:
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
    lines = {line["row"]: line for line in MEASURED["confirmation"]["rows"]}
    for name, row in README.items():
        expected = [f"{lines[row]['sdr'][source]['mean']:.1f}" for source in ("bass", "drums")]
        assert table[name][:2] == expected
        assert ("yes" in table[name][2:]) is ("oracle" in row)


@pytest.mark.parametrize(
    "page, digits", [("README.md", 1), ("hybrid/weights/README.md", 2), ("docs/results.md", 2)]
)
def test_what_the_models_that_ship_give_is_what_was_measured(page, digits):
    """Means over both sources, on four sets."""
    table = cells((ROOT / page).read_text(encoding="utf-8").split("\n## Slakh2100 excerpts")[0])
    for name, row in WHAT_YOU_GET.items():
        lines = (next(x for x in MEASURED[n]["rows"] if x["row"] == row) for n in SETS)
        assert table[name] == [f"{line['sdr']['mean']['mean']:.{digits}f}" for line in lines]


@pytest.mark.parametrize("page, digits", [("README.md", 1), ("hybrid/song_weights/README.md", 2)])
def test_what_whole_songs_get_is_what_was_measured(page, digits):
    lines = {line["row"]: line["sdr"] for line in MEASURED["song_real"]["rows"]}
    rows = ("neural, default: mask network", "baseline: mixture", "baseline: ideal ratio mask")
    text = (ROOT / page).read_text(encoding="utf-8")
    assert " | ".join(f"{lines[row]['mean']['mean']:.{digits}f}" for row in rows) in text


QUESTIONS = [
    (f"hybrid, {row}", f"{other}, {row}")
    for row in ("default: refined", "published: oracle, raw")
    for other in ("lqvae", "lass")
]


@pytest.mark.parametrize("name", ["confirmation", "ablation"])
def test_what_a_user_gets_is_3_db_above_oracle_picks_and_the_mixture(name):
    items = {(i["first"], i["second"]): i["difference"] for i in MEASURED[name]["comparisons"]}
    oracles = (f"hybrid, {kind}: oracle, raw" for kind in ("published", "default"))
    for second in (*oracles, "baseline: mixture"):
        for source in ("bass", "drums"):
            assert items["hybrid, default: refined", second][source]["mean"] >= 3


def test_the_first_lines_answer_from_the_untouched_set():
    """The paired differences, the ratios of costs and the words go with each other."""
    items = {(i["first"], i["second"]): i for i in MEASURED["confirmation"]["comparisons"]}
    gaps = [items[pair]["difference"]["mean"] for pair in QUESTIONS]
    costs = {row["method"]: row["ratio"] for row in COST if row["ratio"]}
    ratio = "{mean:.2f} [{low:.2f}, {high:.2f}]"
    ratios = [ratio.format(**costs[method]) for method in ("lqvae", "lass")]
    differences = [interval_cell(gap, "+").replace("-", "−") for gap in gaps]
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("Is the hybrid better?")[1]
    for text in (dict(sections())["# Results"].split("\n\n")[1], readme.split("\n\n")[0]):
        plain = " ".join(text.split())
        assert re.findall(r"[+−]\d\.\d\d \[[^]]*\]", plain) == differences
        assert re.findall(r"(?<![+−])\b\d\.\d\d \[\d[^]]*\]", plain) == ratios
    verdicts = [gap["low"] > 0 for gap in gaps] + [gap["high"] < 0 for gap in gaps]
    assert verdicts == [False, False, True, True, True, False, False, False]


def test_the_costs_are_those_measured():
    table = cells(told_of("confirmation"))
    for row in COST:
        shown_row = table[{"lqvae": "LQ-VAE", "lass": "LASS", "hybrid": "Hybrid"}[row["method"]]]
        seconds = row["seconds"]
        assert np.mean(row["turns"]) == pytest.approx(seconds["mean"])
        assert shown_row[0] == "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**seconds)


def test_the_page_shows_what_a_likelihood_knows():
    variants = kept("likelihood")["variants"]
    families = {"LASS": "reconstruction", "LQ-VAE, hybrid": "linearisation"}
    (section,) = (text for heading, text in sections() if heading.startswith("What a likelihood"))
    lines = [line.strip("| ").split(" | ") for line in section.splitlines()]
    rows = [row for row in lines if row[0] in families]
    assert len(rows) > 20
    for codec, likelihood, *told in rows:
        of = variants[families[codec]][likelihood]
        bits, pair = of["bits_per_code"], of["pair_bits"]
        expected = [f"{of['impossible']:.1%}", "inf" if bits is None else f"{bits:.3f}"]
        assert told == expected + [f"{pair[weight]:.2f}" for weight in ("1", "3")]


def test_the_page_shows_what_variety_is_worth():
    variants = kept("variety")
    (section,) = (text for heading, text in sections() if heading.startswith("Variety"))
    table = cells(section)
    plain = np.mean(list(variants["plain"]["chunks"].values()), 0)
    for name, variant in variants.items():
        mean = np.mean(list(variant["chunks"].values()), 0)
        told = table[variant["songs"]]
        assert told[0] == interval_cell(bootstrap_mean(mean, groups=variant["of"])._asdict())
        gap = paired_difference(mean, plain, variant["of"])._asdict()
        assert told[1] == ("-" if name == "plain" else interval_cell(gap, "+"))


def test_the_page_shows_the_scores_by_the_metric_of_the_reference_report():
    rows = kept("slakh_reference")["rows"]
    (section,) = (text for heading, text in sections() if heading == "Slakh2100 excerpts")
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if " | " in line]
    shown = {(line[0], line[1]): line[2:] for line in lines}
    names = {"hybrid": "hybrid", "hybrid-neural": "hybrid-neural", "nmf": "NMF"}
    for method, name in names.items():
        refined = method != "nmf"
        for source, cell in zip(("bass", "drums"), shown[name, "what you get"], strict=True):
            (row,) = (
                r
                for r in rows
                if (r["method"], r["estimate"], r["source"], r["refined"])
                == (method, "selected", source, refined)
            )
            assert cell == "{mean:.2f} [{ci_low:.2f}, {ci_high:.2f}]".format(**row)
