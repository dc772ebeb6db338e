"""Programs replace and remove only what they wrote, and refuse anything else before any work.

Through the real programs: a user's files where outputs go, outputs that are inputs, outputs that
are no files, and a disk without room.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from full_disk import files_up_to
from made_up_runs import write_runs
from matplotlib.figure import Figure
from upstream_files import CODEC_HPS, codec_tensors, convert, save_checkpoint

from jukebox_core import audio
from jukebox_core.datasets.excerpts import write_excerpt
from jukebox_core.evaluation.estimates import Oracle
from jukebox_core.evaluation.figures import is_figure_of
from jukebox_core.evaluation.outputs import Outputs
from jukebox_core.separation.method import Method
from jukebox_core.separation.settings import tuned_path
from jukebox_core.upstream.checkpoints import export_codec, import_codec
from scripts import (
    _notebook,
    ablate,
    ablate_training,
    check_parity,
    demo,
    evaluate,
    plot_losses,
    report,
    score_likelihood,
    score_uncertainty,
    tune,
)
from scripts._methods import METHODS
from scripts._sweep import Draw, Sweep, run_draws
from scripts.ablate import program as ablate_program
from scripts.ablate.tables import compare, markdown
from scripts.check_parity.fixtures import Row

REPOSITORY = Path(__file__).parent.parent
MINE = b"not ours"


@pytest.fixture
def models(tiny_models, tmp_path):
    """The models, in a folder that tuning may write to."""
    folder = tmp_path / "models"
    folder.mkdir()
    for family in ("linearisation", "reconstruction"):
        (folder / family).symlink_to(tiny_models / family)
    return folder


def everything(folder):
    """{path: content} of all files of a folder; None for folders, links by where they lead."""
    return {
        path.relative_to(folder): os.readlink(path)
        if path.is_symlink()
        else (path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


def put(path, content=MINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def refused(capsys, folder, main, flags, *words):
    """The program ends with one line and status 1, and `folder` is as it was."""
    before = everything(folder)
    capsys.readouterr()
    assert main([str(flag) for flag in flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(str(word) in line for word in words), line
    assert everything(folder) == before


def never(*_, **__):
    raise AssertionError("this is work, and the outputs were to be refused before any")


def stop(*_, **__):
    raise KeyboardInterrupt


def odd_outputs(folder, suffix=""):
    """Paths that no file can be written to."""
    (folder / f"folder{suffix}").mkdir()
    (folder / f"device{suffix}").symlink_to(os.devnull)
    os.mkfifo(folder / f"pipe{suffix}")
    put(folder / "file")
    names = (f"folder{suffix}", f"device{suffix}", f"pipe{suffix}", f"file/inner{suffix}")
    return [folder / name for name in names]


# evaluate


def evaluation(folder, data, output, *flags):
    common = ["--models", folder, "--data", data, "--output", output, "--device", "cpu"]
    common += ["--chunks", "2", "--chunk-codes", "64", "--candidates", "2", "--methods", "lqvae"]
    return [*map(str, common), "--baselines", "mixture", "nmf", *map(str, flags)]


def test_evaluate_keeps_a_users_files_beside_its_own(tiny_models, tiny_data, tmp_path):
    out = tmp_path / "test.json"
    mine = [
        put(tmp_path / "test_audio" / name)
        for name in ("song.flac", "weights.npz", "00_mixture.wav", "07_mixture.flac", "0_x.flac")
    ]
    parts = tmp_path / "test.json.parts"
    mine += [put(parts / "thesis.txt"), put(parts / "hpss.json", {"key": 1})]
    assert evaluate.main(evaluation(tiny_models, tiny_data, out, "--examples", "2")) == 0
    examples = set((tmp_path / "test_audio").iterdir()) - set(mine)
    named = {Path(name).name for name in Outputs(out, ("bass", "drums"), METHODS).owned()}
    assert {path.name for path in examples} == named and "01_mixture.flac" in named
    assert all(path.exists() for path in mine)

    assert evaluate.main(evaluation(tiny_models, tiny_data, out, "--examples", "1")) == 0
    left = set((tmp_path / "test_audio").iterdir()) - set(mine)
    assert left == {path for path in examples if path.name.startswith("00_")}
    assert all(path.exists() for path in mine) and set(parts.iterdir()) == set(mine[-2:])
    for path in mine:
        path.unlink()
    assert evaluate.main(evaluation(tiny_models, tiny_data, out, "--examples", "0")) == 0
    assert set(tmp_path.iterdir()) == {out}  # folders go when they are empty


def test_evaluate_refuses_to_replace_what_it_did_not_write(
    tiny_models, tiny_data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(Method, "load_separator", never)
    results = tmp_path / "test.json"
    flags = evaluation(tiny_models, tiny_data, results)
    for name, content in {
        "test_audio/00_mixture.flac": MINE,
        "test_audio/01_lqvae_oracle_bass.flac": MINE,
        "test_audio/00_lqvae_uncertainty.npz": MINE,
        "test_audio/00_nmf_drums.flac": MINE,
        "test.json.parts/lqvae.json": {"notes": "mine"},
        "test.json.parts/lqvae.examples.json": MINE,
        "test.json": {"version": 1, "rows": []},
        "test_audio": MINE,
        "test.json.parts": MINE,
    }.items():
        path = put(tmp_path / name, content)
        refused(capsys, tmp_path, evaluate.main, flags, tmp_path / name)
        path.unlink()
        if path.parent != tmp_path:
            path.parent.rmdir()
    for path in odd_outputs(tmp_path, ".json"):
        refused(capsys, tmp_path, evaluate.main, evaluation(tiny_models, tiny_data, path), path)
    # a link in the place of an example leads to what is the user's, whatever the results name
    (tmp_path / "test_audio").mkdir()
    (tmp_path / "test_audio" / "00_mixture.flac").symlink_to(put(tmp_path / "precious.flac"))
    named = [{"files": {"mixture": "test_audio/00_mixture.flac"}}]
    put(results, {"meta": {"examples": named}, "rows": [], "chunks": []})
    refused(capsys, tmp_path, evaluate.main, flags, "00_mixture.flac")


@pytest.mark.parametrize("link", [False, True])
def test_evaluate_does_not_replace_the_data_set(tiny_models, tiny_data, tmp_path, capsys, link):
    data = shutil.copytree(tiny_data, tmp_path / "prepared")
    output = data / "manifest.json"
    if link:
        (tmp_path / "out.json").symlink_to(output)
        output = tmp_path / "out.json"
    refused(capsys, tmp_path, evaluate.main, evaluation(tiny_models, data, output), output)


def test_evaluate_removes_only_names_of_its_own_folder(tiny_models, tiny_data, tmp_path):
    """Results that were copied or edited name files elsewhere."""
    elsewhere = ["other_audio/00_truth_bass.flac", "00_truth_bass.flac", "test_audio/notes.flac"]
    mine = [put(tmp_path / name) for name in elsewhere]
    named = [*elsewhere, "test_audio/../00_truth_bass.flac", str(mine[1]), "test_audio"]
    content = {"meta": {"examples": [{"files": named}]}, "rows": [], "chunks": []}
    out = put(tmp_path / "test.json", content)
    assert evaluate.main(evaluation(tiny_models, tiny_data, out, "--examples", "1")) == 0
    assert all(path.read_bytes() == MINE for path in mine)


def test_an_evaluation_that_was_stopped_knows_its_examples(
    tiny_models, tiny_data, tmp_path, monkeypatch
):
    out = tmp_path / "test.json"
    assert evaluate.main(evaluation(tiny_models, tiny_data, out, "--examples", "2")) == 0
    mine = put(tmp_path / "test_audio" / "mine.flac")
    with monkeypatch.context() as patch:
        patch.setattr("jukebox_core.kept.write_json", stop)  # the examples are written
        other = evaluation(tiny_models, tiny_data, out, "--examples", "1", "--seed", "1")
        other = [flag.replace("lqvae", "hybrid") for flag in other]
        assert evaluate.main(other) == 130
    assert (tmp_path / "test_audio" / "00_hybrid_bass.flac").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(Outputs, "write", stop)
        assert evaluate.main(evaluation(tiny_models, tiny_data, out, "--seed", "1")) == 130
    flags = evaluation(tiny_models, tiny_data, out, "--examples", "1", "--seed", "1")
    assert evaluate.main(flags) == 0
    names = {path.name for path in (tmp_path / "test_audio").iterdir()}
    own = {name for name in names if name.startswith("00_") and "hybrid" not in name}
    assert names == own | {"mine.flac"} and mine.read_bytes() == MINE
    assert not (tmp_path / "test.json.parts").exists()


def test_examples_are_known_where_the_old_results_are_gone_and_the_rest_is_not_removed(
    tiny_models, tiny_data, tmp_path, monkeypatch
):
    """Stopped between the new results and the removal of old examples."""
    out = tmp_path / "test.json"
    assert evaluate.main(evaluation(tiny_models, tiny_data, out, "--examples", "2")) == 0
    outputs = Outputs(out, ("bass", "drums"), METHODS)
    results = json.loads(out.read_text())
    results["meta"]["examples"] = results["meta"]["examples"][:1]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            outputs.write(results)
    assert "01_mixture.flac" in outputs.owned()
    outputs.write(results)
    assert {path.name[:3] for path in (tmp_path / "test_audio").iterdir()} == {"00_"}


def test_methods_that_are_scored_side_by_side_are_joined(tiny_models, tiny_data, tmp_path):
    out = tmp_path / "test.json"
    for _ in range(2):
        for method in ("lqvae", "hybrid"):
            flags = evaluation(tiny_models, tiny_data, out, "--examples", "1", "--parts-only")
            assert evaluate.main([flag.replace("lqvae", method) for flag in flags]) == 0
        flags = evaluation(tiny_models, tiny_data, out, "--examples", "1")
        at = flags.index("lqvae") + 1
        assert evaluate.main([*flags[:at], "hybrid", *flags[at:]]) == 0
        assert (tmp_path / "test_audio" / "00_hybrid_oracle_bass.flac").is_file()


def test_evaluate_on_a_full_disk(tiny_models, tiny_data, tmp_path, capsys):
    flags = evaluation(tiny_models, tiny_data, tmp_path / "test.json", "--examples", "1")
    for size, words in ((100, "lqvae.examples.json"), (1000, "test_audio"), (1 << 14, ".json")):
        with files_up_to(size):
            capsys.readouterr()
            assert evaluate.main(flags) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and words in line, line
        left = [path for path in tmp_path.rglob("*") if ".tmp" in path.name]
        assert not left and not (tmp_path / "test.json").exists()
    assert evaluate.main(flags) == 0


# report, figures


@pytest.fixture
def runs(tmp_path):
    return write_runs(tmp_path / "runs")


def test_report_replaces_reports_alone(runs, tmp_path, capsys, monkeypatch):
    page = tmp_path / "report.html"
    flags = ["--runs", runs, "--output"]
    for _ in range(2):
        assert report.main([*map(str, flags), str(page)]) == 0
    generator = '<meta name="generator" content="latent-separation report">\n'
    assert page.read_text().count(generator) == 1
    page.write_text(page.read_text().replace(generator, ""))  # as earlier versions wrote them
    assert report.main([*map(str, flags), str(page)]) == 0
    monkeypatch.setattr("scripts.report.program.build_page", never)
    put(tmp_path / "mine.html", b"<!doctype html>\n<title>LQ-VAE, LASS and their hybrid</title>")
    metrics = runs / "models" / "reconstruction" / "vqvae" / "metrics.csv"
    (tmp_path / "link.html").symlink_to(metrics)
    odd = odd_outputs(tmp_path, ".html")
    for output in (tmp_path / "mine.html", runs / "results.json", metrics, *odd):
        refused(capsys, tmp_path, report.main, [*flags, output], output)
    refused(capsys, tmp_path, report.main, [*flags, tmp_path / "link.html"], "link.html")


def test_outputs_on_a_full_disk(runs, tiny_models, tiny_data, tmp_path, capsys):
    names = ("report.html", "x.png", "checkpoint", "sums", "likelihood.json", "run")
    codec = tiny_models / "reconstruction" / "vqvae"
    sums = tiny_models / "linearisation" / "sums.safetensors"
    checkpoint = save_checkpoint(tmp_path / "c.pth.tar", codec_tensors(), CODEC_HPS)
    back = ["--back", "--output"]
    output = [tmp_path / "out" / name for name in names]
    (tmp_path / "out").mkdir()
    programs = [
        (report.main, ["--runs", runs, "--output", output[0]]),
        (plot_losses.main, ["--models", tiny_models, "--output", tmp_path / "out"]),
        (_convert, ["--kind", "codec", "--input", codec, *back, output[2]]),
        (_convert, ["--kind", "sums", "--input", sums, *back, output[3]]),
        (score_likelihood.main, likelihood(tiny_models, tiny_data, output[4])),
        (_convert, ["--kind", "codec", "--input", checkpoint, "--output", output[5]]),
    ]
    with files_up_to(100):
        for main, flags in programs:
            refused(capsys, tmp_path / "out", main, flags, tmp_path / "out")


def _convert(flags):
    from scripts.convert_upstream import main

    return main(flags)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figures_of_losses_replace_their_own_alone(
    tiny_models, tmp_path, capsys, monkeypatch, suffix
):
    flags = ["--models", tiny_models, "--output", tmp_path, "--format", suffix]
    for _ in range(2):
        assert plot_losses.main([str(flag) for flag in flags]) == 0
    written = sorted(tmp_path.iterdir())
    assert all(is_figure_of("plot_losses")(path) for path in written)
    assert not any(is_figure_of("ablate")(path) for path in written)
    monkeypatch.setattr(plot_losses, "draw", never)
    for path in (written[0], written[-1]):
        figure, own = Figure(), path.read_bytes()
        figure.subplots().plot([1, 2])
        figure.savefig(path)
        refused(capsys, tmp_path, plot_losses.main, flags, path)
        path.write_bytes(own)
    put(tmp_path / "file")
    refused(capsys, tmp_path, plot_losses.main, [*flags[:2], "--output", tmp_path / "file"])


def test_the_repositorys_figures_are_known():
    own = {"ablation.png": "ablate", "sdr_scatter.png": "ablate"}
    pictures = list((REPOSITORY / "images").glob("*.png"))
    assert len(pictures) == 6
    assert all(is_figure_of(own.get(path.name, "plot_losses"))(path) for path in pictures)


# tables of scores


def likelihood(folder, data, output):
    flags = ["--models", folder, "--data", data, "--output", output, "--iterations", "1"]
    flags += ["--smoothings", "3", "--sigmas", "0.4", "--exponents", "1", "--compared", "32"]
    return list(map(str, flags))


def test_score_likelihood(tiny_models, tiny_data, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(tiny_models, tmp_path / "models")
    out = tmp_path / "likelihood.json"
    for _ in range(2):
        assert score_likelihood.main(likelihood(folder, tiny_data, out)) == 0
    monkeypatch.setattr(score_likelihood, "score", never)
    monkeypatch.setattr(score_likelihood, "fingerprint", never)
    counts = folder / "reconstruction" / "counts.safetensors"
    (tmp_path / "link").symlink_to(counts)
    mine = [
        put(tmp_path / "0.json", {"variants": {}}),
        put(tmp_path / "1.json", {"variants": [{"correlation": {}}], "asked": {"within": 20}}),
        put(tmp_path / "2.json", b'{"a":' * 100_000),
    ]
    odd = odd_outputs(tmp_path)
    for output in (counts, tmp_path / "link", *mine, *odd):
        flags = likelihood(folder, tiny_data, output)
        refused(capsys, tmp_path, score_likelihood.main, flags, output)


def test_score_uncertainty(tiny_models, tiny_data, tmp_path, capsys, monkeypatch):
    flags = ["--models", tiny_models, "--data", tiny_data, "--chunks", "1", "--candidates", "4"]
    flags += ["--chunk-codes", "64", "--output"]
    out = tmp_path / "uncertainty.json"
    monkeypatch.setattr(score_uncertainty, "VARIANTS", (("ancestral", 1),))
    for _ in range(2):
        assert score_uncertainty.main([*map(str, flags), str(out)]) == 0
    monkeypatch.setattr(Method, "load_separator", never)
    for content in ({"variants": {}, "asked": {"compared": 1, "iterations": 1}}, [], MINE):
        put(out, content)
        refused(capsys, tmp_path, score_uncertainty.main, [*flags, out], out)


def test_tune(models, tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(tune.GRIDS, "lqvae", {})
    flags = ["--models", models, "--data", tiny_data, "--chunks", "1", "--jobs", "1"]
    flags += ["--method", "lqvae", "--candidates", "2", "--chunk-codes", "64", "--budget", "1"]
    for _ in range(2):
        assert tune.main([str(flag) for flag in flags]) == 0
    defaults, masks = models.glob("tuned/lqvae.parts/*.json")
    monkeypatch.setattr(Method, "load_separator", never)
    for scores in (defaults, masks):
        own = scores.read_bytes()
        refused(capsys, tmp_path, tune.main, flags, put(scores))
        put(scores, own)
    put(tuned_path(models, "lqvae"), {"options": {"sigma": 0.3}})  # chosen by hand
    refused(capsys, tmp_path, tune.main, flags, tuned_path(models, "lqvae"))


def test_scores_of_draws_replace_scores_alone(tiny_models, tiny_data, tmp_path, monkeypatch):
    sweep = Sweep(tiny_models, tiny_data, "test", 1, chunk_codes=64)
    draws = {Draw("lqvae", candidates=2): {"oracle": Oracle()}}
    run_draws(sweep, draws, tmp_path, 1)
    (path,) = tmp_path.iterdir()
    put(path, {"values": "mine"})
    monkeypatch.setattr(Method, "load_separator", never)
    with pytest.raises(FileExistsError, match=path.name):
        run_draws(sweep, draws, tmp_path, 1)
    assert json.loads(path.read_text()) == {"values": "mine"}


# ablations


def test_ablate(models, tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ablate_program, "run_draws", never)
    out = tmp_path / "out"
    flags = ["--models", models, "--data", tiny_data, "--output", out]
    user = Figure()
    user.subplots().plot([1, 2])
    for name in ("ablation.json", "ablation.md", "ablation.png", "sdr_scatter.png"):
        put(out / name)
        if name.endswith(".png"):
            user.savefig(out / name)
        refused(capsys, tmp_path, ablate.main, flags, out / name)
        (out / name).unlink()
    shutil.rmtree(out)
    put(out)
    refused(capsys, tmp_path, ablate.main, flags, out)


def test_an_ablation_goes_on_over_its_own(tmp_path):
    """Ablations of earlier versions list no files, and their plots have no mark."""
    images = REPOSITORY / "images"
    shutil.copy(REPOSITORY / "docs" / "data" / "ablation.json", tmp_path)
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    (tmp_path / "ablation.md").write_text(markdown(rows, list(compare(rows))))
    for name in ("ablation.png", "sdr_scatter.png"):
        shutil.copy(images / name, tmp_path)
    ablate_program.check_outputs(tmp_path, ("bass", "drums"))
    figure = Figure()
    figure.savefig(tmp_path / "ablation.png")
    ablate_program.check_outputs(tmp_path, ("bass", "drums"))
    put(tmp_path / "ablation.json", {"rows": rows, "comparisons": [], "files": ["ablation.png"]})
    with pytest.raises(FileExistsError, match=r"ablation\.png"):
        ablate_program.check_outputs(tmp_path, ("bass", "drums"))


def test_ablate_training(tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", never)
    out = tmp_path / "out"
    flags = ["--data", tiny_data, "--output", out, "--preset", "tiny"]
    for name, content in {
        "training.json": {"variants": {}, "asked": {}},
        "stages.json": {"stage": "mine"},
        "priors/stages.json": [],
        "logs/base,_codec.log": MINE,
    }.items():
        put(out / name, content)
        refused(capsys, tmp_path, ablate_training.main, flags, out / name)
        shutil.rmtree(out)


def test_a_variants_copy_of_the_base_is_whole_or_not_there(tmp_path, monkeypatch):
    args = ablate_training.Args(data=tmp_path, output=tmp_path)
    base = tmp_path / "base" / "models" / "linearisation"
    for name in ("counts.safetensors", "sums.safetensors", "vqvae/meta.json", "vqvae/state.pt"):
        put(base / name)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", stop)
        with pytest.raises(KeyboardInterrupt):
            ablate_training.share_base(args, "prior")
    own = tmp_path / "prior" / "models" / "linearisation"
    assert not list(own.parent.iterdir())
    ablate_training.share_base(args, "prior")
    assert set(everything(base)) - set(everything(own)) == {Path("vqvae/state.pt")}
    mine = put(own / "mine")
    ablate_training.share_base(args, "prior")
    assert mine.read_bytes() == MINE


# parity, conversion


def test_check_parity(tmp_path, capsys, monkeypatch):
    fixture = put(tmp_path / "vqvae.json", {"name": "vqvae", "hps": {}})
    rows = [Row("vqvae", "codec", 0.0, 1e-5, True, "")]
    table, page = tmp_path / "parity.json", tmp_path / "parity.md"
    monkeypatch.setattr("scripts.check_parity.program.run", lambda _: rows)
    flags = ["--fixtures", tmp_path, "--output", table, "--markdown", page]
    for _ in range(2):
        assert check_parity.main([str(flag) for flag in flags]) == 0
    shutil.copy(REPOSITORY / "docs" / "parity.md", page)
    assert check_parity.main([str(flag) for flag in flags]) == 0
    monkeypatch.setattr("scripts.check_parity.program.run", never)
    notes = put(tmp_path / "notes.md", b"# Parity\n\nmine")
    commands = Path(shutil.copy(REPOSITORY / "docs" / "commands.md", tmp_path))
    odd = odd_outputs(tmp_path)
    for flag, outputs in {
        "--output": (fixture, page, notes, *odd),
        "--markdown": (fixture, table, notes, commands, *odd),
    }.items():
        for output in outputs:
            flags = ["--fixtures", tmp_path, flag, output]
            refused(capsys, tmp_path, check_parity.main, flags, output)
    same = tmp_path / "same"
    flags = ["--fixtures", tmp_path, "--output", same, "--markdown", same]
    refused(capsys, tmp_path, check_parity.main, flags, same)


def test_conversions_write_new_files_alone(tiny_models, tmp_path, capsys):
    native = shutil.copytree(tiny_models / "reconstruction", tmp_path / "native")
    checkpoint = save_checkpoint(tmp_path / "c.pth.tar", codec_tensors(), CODEC_HPS)
    (tmp_path / "link").symlink_to(checkpoint)
    mine, odd = put(tmp_path / "mine"), odd_outputs(tmp_path)
    for output in (checkpoint, tmp_path / "link", native / "vqvae", mine, *odd):
        flags = ["--kind", "codec", "--input", checkpoint, "--output", output]
        refused(capsys, tmp_path, _convert, flags, output)
    for kind, name in (("codec", "vqvae"), ("counts", "counts.safetensors")):
        for output in (native / name, native / "vqvae" / "weights.safetensors", mine, *odd):
            flags = ["--kind", kind, "--input", native / name, "--output", output, "--back"]
            refused(capsys, tmp_path, _convert, flags, output)
    for write in (
        lambda path: export_codec(native / "vqvae", path),
        lambda path: import_codec(checkpoint, path),
    ):
        with pytest.raises(ValueError, match="exists"):
            write(mine)
    assert mine.read_bytes() == MINE
    assert convert("codec", checkpoint, tmp_path / "new") == 0


# demo, notebook


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", {"rows": []}),
        ("report.html", b"<!doctype html>\n<title>mine</title>"),
        ("results_audio/00_truth_bass.flac", MINE),
        ("results.json.parts/irm.json", MINE),
        ("stages.json", {"songs": "mine"}),
        ("stages.json", []),
        ("stages.json", MINE),
        ("logs/songs.log", MINE),
    ],
)
def test_the_demo_refuses_a_users_files_before_any_stage(
    tmp_path, capsys, monkeypatch, name, content
):
    monkeypatch.setattr(subprocess, "Popen", never)
    put(tmp_path / "out" / name, content)
    put(tmp_path / "out" / "logs" / "notes.txt")
    refused(capsys, tmp_path, demo.main, ["--output", tmp_path / "out"], tmp_path / "out" / name)


def test_the_demo_goes_on_over_its_own(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        return subprocess_run("import sys; print('x'); sys.exit(3)")

    def subprocess_run(code):
        return popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", fail)
    out = tmp_path / "out"
    for _ in range(2):  # the log of the stage that failed is there
        assert demo.main(["--output", str(out)]) == 1
        assert "songs failed with status 3" in capsys.readouterr().err
    (out / "results.json").write_text(
        json.dumps({"meta": {"examples": []}, "rows": [], "chunks": []})
    )
    assert demo.main(["--output", str(out)]) == 1
    assert "songs failed with status 3" in capsys.readouterr().err
    put(tmp_path / "file")
    refused(capsys, tmp_path, demo.main, ["--output", tmp_path / "file"])


def test_the_notebook_removes_only_the_copies_of_an_upload(tmp_path, monkeypatch):
    """Colab writes a file under another name where the working folder has one of its own."""
    folder, song = tmp_path / "work", b"RIFF of another song"
    mine = [put(folder / name, content) for name, content in (("a.wav", MINE), ("b.wav", song))]

    def upload():
        put(folder / "a (1).wav", song)
        put(folder / "written meanwhile")
        return {"a.wav": song}

    files = types.ModuleType("google.colab.files")
    files.upload = upload
    monkeypatch.setitem(sys.modules, "google.colab.files", files)
    for name in ("google", "google.colab"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.chdir(folder)
    asked = _notebook.Upload(tmp_path / "uploads")
    asked.ask()
    assert asked.file() == tmp_path / "uploads" / "a.wav" and asked.file().read_bytes() == song
    assert mine[0].read_bytes() == MINE and mine[1].read_bytes() == song
    assert {path.name for path in folder.iterdir()} == {"a.wav", "b.wav", "written meanwhile"}


def test_uploads_of_one_name_are_kept_side_by_side(tmp_path):
    upload = _notebook.Upload(tmp_path)
    for content, name in ((b"1", "a.wav"), (b"2", "a-2.wav"), (b"1", "a.wav"), (b"3", "a-3.wav")):
        upload._keep("a.wav", content)
        assert upload.file() == tmp_path / name and upload.file().read_bytes() == content
    (tmp_path / "x.wav").mkdir()
    upload._keep("x.wav", b"x")
    assert upload.file() == tmp_path / "x-2.wav"


def test_the_notebooks_excerpt_replaces_nothing_else(tiny_data, tmp_path):
    path = tmp_path / "example.wav"
    for _ in range(2):
        assert write_excerpt(tiny_data, path, 1.0) == path
    assert audio.info(path)[0] == 22_050
    audio.save(path, torch.zeros(1, 22_050), 22_050)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"example\.wav"):
        write_excerpt(tiny_data, path, 1.0)
    assert path.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_evaluation_is_repeated(tiny_models, tiny_data, tmp_path):
    """Killed while it writes the first example; the next run knows it and removes the rest."""
    out = tmp_path / "test.json"
    script = f"""
import os, sys
from scripts import evaluate
from scripts.evaluate import scoring
scoring.Scoring._write_uncertainty = lambda *_: os.kill(os.getpid(), {signal.SIGKILL:d})
evaluate.main(sys.argv[1:])
"""
    flags = evaluation(tiny_models, tiny_data, out, "--examples", "1")
    command = [sys.executable, "-c", script, *flags]
    killed = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL and list((tmp_path / "test_audio").iterdir())
    assert evaluate.main(flags) == 0
    assert set(tmp_path.iterdir()) == {out, tmp_path / "test_audio"}
    with np.load(tmp_path / "test_audio" / "00_lqvae_uncertainty.npz") as stored:
        assert stored["uncertainty"].size
