"""scripts.report: a page that needs nothing else, and says what the JSON says."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
from made_up_runs import RATE, SHOWN, SOURCES, write_runs

from jukebox_core.audio import pictures
from jukebox_core.evaluation.results import (
    difference,
    find_row,
    load_results,
    make_rows,
    paired,
    series,
)
from jukebox_core.evaluation.scores import METRICS
from jukebox_core.files import write_json
from scripts import report
from scripts._results import cell, default_line, format_table

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(runs):
    assert report.main(["--runs", str(runs), "--output", str(runs / "report.html")]) == 0
    return (runs / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """All tags with their attributes; the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        void = ("meta", "link", "img", "br", "input")
        if tag not in void and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_is_well_formed_and_asks_for_nothing_outside(page):
    elements = Elements(page)
    assert elements.open == []
    for tag, attributes in elements.tags:
        assert tag not in ("iframe", "object", "base")
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}>"
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    (policy,) = (a["content"] for t, a in elements.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none';") and "http" not in policy
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page


def test_the_audio_is_in_the_page(page, runs):
    sources = [a["src"] for tag, a in Elements(page).tags if tag == "audio"]
    assert len(sources) == 1 + 6 * 2
    for source in sources:
        prefix, data = source.split(",")
        assert prefix == "data:audio/mpeg;base64"
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        assert rate == RATE and 20_000 <= len(samples) < 25_000 and samples.std() > 0.05
    pictures = [a["src"] for tag, a in Elements(page).tags if tag == "img"]
    assert len(pictures) == 13 + 2 and all(p.startswith("data:image/png;base64,") for p in pictures)


def test_the_table_says_what_the_json_says(page, runs):
    results = json.loads((runs / "results.json").read_text())
    cells = [re.sub("<.*?>", "", text) for text in re.findall(r"<td[^>]*>(.*?)</td>", page)]
    lines = [(m, *s) for m in ("lqvae", "lass", "hybrid") for s in SHOWN if s != ("oracle", True)]
    lines += [("mixture", "selected", False), ("irm", "oracle", False)]
    for line in lines:
        for source in (*SOURCES, "mean"):
            assert cell(find_row(results, *line, source, "sdr")) in cells
    assert "3.21" in cells
    assert {"3.41", "5.41", "3.22", "4.78", "4.72", "5.15"} <= set(cells)
    assert "Slakh2100, oracle of 64, Colab T4; context only" in page


def test_the_headline_is_computed_from_the_scores(page, runs):
    results = json.loads((runs / "results.json").read_text())
    text = Elements(page).text
    for other, verdict in (("lqvae", "better than LQ-VAE"), ("lass", "not distinguishable from")):
        interval = difference(results, default_line("hybrid"), default_line(other))
        assert verdict in text
        assert f"{interval.mean:+.2f} dB (95% interval {interval.low:+.2f} to" in text
    interval = difference(results, default_line("hybrid"), default_line("mixture"))
    assert interval.mean > 5
    assert f"the mixture taken as both estimates here: {interval.mean:+.2f} dB" in text
    for method in ("lqvae", "lass", "hybrid"):
        row = find_row(results, method, "selected", True, "mean", "sdr")
        shown = f"{row['mean']:.2f} dB SDR"
        assert f"{shown}95%: {row['ci_low']:.2f} to {row['ci_high']:.2f}" in text


def test_without_the_hybrid_the_question_is_open(runs, tmp_path):
    results = json.loads((runs / "results.json").read_text())
    for key in ("rows", "chunks"):
        results[key] = [x for x in results[key] if x["method"] not in ("hybrid", "lass")]
    results["meta"]["examples"] = []
    write_json(tmp_path / "results.json", results)
    text = Elements(report.build_page(tmp_path)).text
    assert "The question is open" in text
    assert "LQ-VAE is better than the mixture taken as both estimates here" in text


def test_results_of_version_0_1_are_read_with_the_present_names():
    results = load_results(ROOT / "tests/written_by_version_0.1/results.json")
    assert {row["metric"] for row in results["rows"]} == set(METRICS)
    rows = make_rows(results["chunks"], SOURCES)
    assert {(r["metric"], r["mean"]) for r in rows} == {
        (r["metric"], r["mean"]) for r in results["rows"]
    }
    assert "sdr_bsseval in dB" in format_table(results, "sdr_bsseval")


def pixels(source):
    picture = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    return matplotlib.image.imread(io.BytesIO(picture))[..., :3]


def test_pictures_of_uncertainty(page):
    found = [
        pixels(attributes["src"])
        for tag, attributes in Elements(page).tags
        if tag == "img" and attributes["alt"] == "uncertainty"
    ]
    assert [p.shape for p in found] == [(96, 40, 3)] * 2
    black, yellow = matplotlib.colormaps["inferno"]([0.0, 1.0])[:, :3]
    for picture, colour in zip(found, (black, yellow), strict=True):
        np.testing.assert_allclose(np.median(picture, (0, 1)), colour, atol=1 / 128)
    assert "00_lass_uncertainty.npz is missing" in page


def test_uncertainty_of_quiet_bins_is_not_shown():
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(RATE) / RATE)
    level = pictures.levels([tone[None]], RATE, RATE, RATE / 2)
    values = pictures.log_rows(torch.full((129, 345), 0.5), RATE / 256, RATE / 2, "mean")
    picture = matplotlib.image.imread(io.BytesIO(pictures.uncertainty(values, level)))[..., :3]
    black, yellow = matplotlib.colormaps["inferno"]([0.0, 1.0])[:, :3]
    rows = np.geomspace(40, RATE / 2, 96)[::-1]
    for row, colour in ((1000, yellow), (4000, black), (100, black)):
        middle = picture[np.abs(rows - row).argmin(), 20:-20]
        np.testing.assert_allclose(middle, np.broadcast_to(colour, middle.shape), atol=1 / 128)


def test_names_and_commands_are_text_not_markup(page):
    text = Elements(page).text
    assert "made-up & <odd>" in text and "python -m scripts.evaluate --models 'a <b>'" in text


@pytest.mark.parametrize(
    ("generated", "words"),
    [(True, "so these are not scores on Slakh2100"), (None, "does not record the origin")],
)
def test_scores_are_not_called_those_of_another_data_set(runs, tmp_path, generated, words):
    results = json.loads((runs / "results.json").read_text())
    results["meta"]["data"]["generated"] = generated
    results["meta"]["examples"] = []
    write_json(tmp_path / "results.json", results)
    text = Elements(report.build_page(tmp_path)).text
    assert words in text
    assert "There are no examples." in text and "No training curves of" in text


def test_what_is_missing_is_named(page, runs, tmp_path):
    text = Elements(page).text
    assert "No training curves of: reconstruction/prior_drums" not in text
    assert "linearisation/vqvae" in text
    assert report.main(["--runs", str(tmp_path), "--output", str(tmp_path / "r.html")]) == 0
    empty = Elements((tmp_path / "r.html").read_text())
    assert empty.open == [] and "results.json is missing" in empty.text
    (runs / "results_audio" / "00_hybrid_bass.flac").rename(runs / "kept.flac")
    try:
        assert "00_hybrid_bass.flac is missing" in Elements(report.build_page(runs)).text
    finally:
        (runs / "kept.flac").rename(runs / "results_audio" / "00_hybrid_bass.flac")


def test_bad_folders_are_one_line(tmp_path, capsys):
    flags = ["--output", str(tmp_path / "report.html")]
    assert report.main(["--runs", str(tmp_path / "nowhere"), *flags]) == 1
    assert "error: there is no folder" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("[1]")
    assert report.main(["--runs", str(tmp_path), *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not hold the results of an evaluation" in line
    assert not (tmp_path / "report.html").exists()


def test_the_strips_hold_every_chunk_where_it_lies(page, runs):
    results = json.loads((runs / "results.json").read_text(encoding="utf-8"))
    gaps = paired(results, ("hybrid", "selected", True), ("lass", "selected", True))
    assert len(gaps) == 6
    strips = re.findall(r'<svg class="strip".*?</svg>', page)
    left, right = (float(re.search(rf'left:([\d.]+)%">{value}<', page)[1]) for value in ("-1", "3"))
    shown = [float(x) for x in re.findall(r'<circle cx="([\d.]+)%"', strips[1])]
    expected = [left + (right - left) * (gap + 1) / 4 for gap in sorted(gaps)]
    np.testing.assert_allclose(shown, expected, atol=0.01)


def test_marks_of_the_scatter_say_their_song(page, runs):
    results = json.loads((runs / "results.json").read_text(encoding="utf-8"))
    for i in range(6):
        x, y = (series(results, "hybrid", "selected", True, s, "sdr")[i] for s in SOURCES)
        assert f"<title>Hybrid, Track{i + 1:05d}: bass {x:.1f}, drums {y:.1f}</title>" in page


def test_what_each_part_adds_is_shown_where_it_was_measured(page, runs, tmp_path):
    assert "What each part adds" not in page
    (tmp_path / "results.json").write_bytes((runs / "results.json").read_bytes())
    (tmp_path / "ablation").mkdir()
    target = tmp_path / "ablation" / "ablation.json"
    target.write_bytes((ROOT / "docs" / "data" / "ablation.json").read_bytes())
    text = Elements(report.build_page(tmp_path)).text
    found = json.loads(target.read_text(encoding="utf-8"))
    for line in found["rows"]:
        if line["row"].startswith("parts: "):
            of = line["sdr"]["drums"]
            words = f"{of['mean']:.2f} [{of['low']:.2f}, {of['high']:.2f}]"
            assert line["row"][7:] in text and words in text
    target.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="does not hold the tables of an ablation"):
        report.build_page(tmp_path)
