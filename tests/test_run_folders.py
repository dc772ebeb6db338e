"""A training run replaces nothing in its folder that no run is recorded to have written."""

import pytest
from contents import contents
from test_train_scripts import codec_flags, error_of

from jukebox_core.checkpoints import META, WEIGHTS, begin_run, load_meta, open_run, run_part
from jukebox_core.training import trainer
from scripts import train_vqvae

IDENTITY = {"kind": "vqvae", "seed": 0}


@pytest.mark.parametrize(
    "mine", ["weights.safetensors", "state.pt", "metrics.csv", "best/a.wav", "media/step_1/x.wav"]
)
def test_a_folder_with_files_of_a_runs_names_is_refused(tmp_path, tiny_data, capsys, mine):
    run = tmp_path / "run"
    (run / mine).parent.mkdir(parents=True)
    (run / mine).write_text("mine")
    before = contents(run)
    line = error_of(capsys, train_vqvae.main(codec_flags(tiny_data, run)))
    assert mine.split("/")[0] in line and contents(run) == before


def test_a_folder_with_other_files_is_used_and_they_stay(tmp_path, tiny_data):
    run = tmp_path / "run"
    mine = {"notes.txt", "best/notes.txt", "steps/notes/a.txt", "media/notes/a.wav"}
    (run / "notes.txt").parent.mkdir()
    (run / "notes.txt").write_text("mine")
    flags = codec_flags(tiny_data, run, "--keep", "1", "--keep-media", "1")
    assert train_vqvae.main([*flags, "--train.steps", "3"]) == 0
    for name in mine:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    step = run / "steps" / "00000003"
    (step / "mine.txt").write_text("mine")
    assert train_vqvae.main(flags) == 0
    assert all((run / name).read_text() == "mine" for name in mine)
    assert (step / "mine.txt").is_file() and (run / "steps" / "00000006").is_dir()


def test_a_run_that_ended_before_its_first_checkpoint_begins_again_with_any_flags(tmp_path):
    meta = {"kind": "vqvae", "seed": 0}
    assert open_run(tmp_path / "none", IDENTITY, 6) == "new"
    begin_run(tmp_path, meta)
    for name in ("metrics.csv", "wandb.json"):
        (tmp_path / name).write_text("")
    assert open_run(tmp_path, IDENTITY, 6) == "new"
    assert open_run(tmp_path, IDENTITY | {"seed": 1}, 6) == "new"
    with pytest.raises(FileNotFoundError, match="has not reached a checkpoint"):
        run_part(tmp_path, WEIGHTS)
    (tmp_path / "state.pt").write_text("")
    begin_run(tmp_path, {"kind": "other"})  # a run that has a state keeps what is recorded of it
    assert load_meta(tmp_path)["kind"] == "vqvae"
    with pytest.raises(ValueError, match="seed is 0 there, now 1"):
        open_run(tmp_path, IDENTITY | {"seed": 1}, 6)


def test_killed_before_the_first_checkpoint_a_run_starts_again(tmp_path, tiny_data, monkeypatch):
    run = tmp_path / "run"
    flags = codec_flags(tiny_data, run, "--train.steps", "3")

    def killed(self, data):
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "_one_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train_vqvae.main(flags)
    assert {p.name for p in run.iterdir()} >= {META, "metrics.csv"}
    assert train_vqvae.main([*flags, "--optim.lr", "0.001"]) == 0
    assert load_meta(run)["finished"] and load_meta(run)["optim"]["lr"] == 0.001


def test_an_output_that_is_a_file(tmp_path, tiny_data, capsys):
    path = tmp_path / "run"
    path.write_text("mine")
    line = error_of(capsys, train_vqvae.main(codec_flags(tiny_data, path)))
    assert str(path) in line and path.read_text() == "mine"
