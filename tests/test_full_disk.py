"""Writers on a full or read-only disk: one line that names the place, and what was there stays."""

import shutil
import sys
from pathlib import Path

import pytest
from full_disk import files_up_to
from made_up_runs import write_runs
from test_locks import tree
from test_mma import write_mma
from test_train_scripts import codec_flags, error_of

import hybrid
from hybrid.hub import HubModels
from jukebox_core.separation.export import export_models
from jukebox_core.separation.settings import tuned_path
from scripts import (
    ablate,
    count_sums,
    evaluate,
    make_arrangements,
    make_synthetic,
    prepare_slakh,
    pretrain,
    report,
    separate,
    train_vqvae,
    tune,
)

READ_ONLY = Path("/sys/latent-separation")  # not even root makes a folder there


def test_copies_of_models(tiny_neural_models, tmp_path):
    """Both of an earlier copy, which is replaced as a whole, and of none."""
    writers = {
        "export": lambda to: export_models(hybrid.NEURAL, tiny_neural_models, to),
        "hub": lambda to: HubModels(tiny_neural_models).save_pretrained(to),
    }
    for name, write in writers.items():
        write(tmp_path / name)
        before = tree(tmp_path)
        for size in (10, 3000):
            for output in (tmp_path / name, tmp_path / f"{name} new"):
                with files_up_to(size), pytest.raises(OSError, match="too large|full"):
                    write(output)
                shutil.rmtree(tmp_path / f"{name} new", ignore_errors=True)
                assert tree(tmp_path) == before


def test_tuned_settings(tiny_models, tiny_data, tmp_path, capsys):
    for family in ("linearisation", "reconstruction"):
        (tmp_path / family).symlink_to(tiny_models / family)
    flags = ["--models", str(tmp_path), "--data", str(tiny_data), "--method", "lass"]
    flags += ["--chunks", "1", "--chunk-codes", "64", "--candidates", "2", "--budget", "1"]
    flags += ["--jobs", "1", "--sizes", "2"]
    with files_up_to(100):
        assert "lass" in error_of(capsys, tune.main(flags))
    assert not list(tmp_path.rglob("*.json"))
    assert tune.main(flags) == 0
    capsys.readouterr()
    before = tree(tmp_path)
    with files_up_to(100):
        assert str(tuned_path(tmp_path, "lass")) in error_of(capsys, tune.main(flags))
    assert tree(tmp_path) == before


def test_arrangements(tmp_path, capsys):
    program, output = tmp_path / "bin" / "mma", tmp_path / "out"
    write_mma(program)
    flags = ["--output", str(output), "--mma", str(program), "--songs", "2"]
    assert make_arrangements.main(flags) == 0
    before = tree(output)
    capsys.readouterr()
    with files_up_to(20):
        error_of(capsys, make_arrangements.main([*flags[:-1], "3"]))
    assert tree(output) == before
    assert make_arrangements.main([*flags[:-1], "3"]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs a read-only file system")
def test_a_read_only_disk_is_named_before_any_work(tiny_models, tiny_data, tmp_path, capsys):
    models = ["--models", tiny_models, "--data", tiny_data]
    counted = ["--vqvae", tiny_models / "linearisation/vqvae", "--data", tiny_data]
    songs = tmp_path / "songs"
    made = ["--tracks", "1", "--seconds", "1", "--parts", "bass", "drums"]
    assert make_synthetic.main([*made, "--output", str(songs)]) == 0
    write_mma(tmp_path / "mma")
    song = next(songs.rglob("mix.flac"))
    folder, file = READ_ONLY, READ_ONLY / "file"
    programs = [
        (train_vqvae, codec_flags(tiny_data, folder)),
        (count_sums, [*counted, "--output", file]),
        (evaluate, [*models, "--output", file.with_suffix(".json")]),
        (ablate, [*models, "--output", folder]),
        (make_synthetic, [*made, "--output", folder]),
        (prepare_slakh, ["--slakh", songs, "--output", folder, "--split", "1", "0", "0"]),
        (make_arrangements, ["--output", folder, "--mma", tmp_path / "mma", "--songs", "1"]),
        (report, ["--runs", write_runs(tmp_path / "runs"), "--output", file]),
        (pretrain, ["--output", tmp_path / "out", "--package", folder]),
        (separate, ["--models", tiny_models, "--method", "lass", "--output", folder, song]),
    ]
    for program, flags in programs:
        capsys.readouterr()
        said = error_of(capsys, program.main([str(flag) for flag in flags]))
        assert "/sys" in said, said
    assert not (tmp_path / "out").exists()
