"""metrics.csv is exact and survives resuming; W&B may fail, be absent, be offline."""

import json
import sys
import types

import numpy as np
import pytest
import soundfile
import torch

from jukebox_core.training.audio_logging import AudioTracker
from jukebox_core.training.tracking import (
    ConsoleTracker,
    CsvTracker,
    Row,
    Tracker,
    read_metrics,
)
from jukebox_core.training.wandb import WandbConfig, WandbTracker


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


class FakeRun:
    """What wandb.init returns."""

    def __init__(self, number, **kwargs):
        self.kwargs = kwargs
        self.id = kwargs.get("id") or "abc123"
        self.logged, self.alerts = [], []
        self.dir = str(kwargs["dir"] / "wandb" / f"offline-run-{number}-{self.id}" / "files")
        self.finished = False

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, values):
        self.logged.append(values)

    def alert(self, title, text):
        self.alerts.append(text)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A wandb module that records what happens to it."""
    module = types.ModuleType("wandb")
    module.runs = []

    def init(**kwargs):
        module.runs.append(FakeRun(len(module.runs), **kwargs))
        return module.runs[-1]

    module.init = init
    module.Settings = lambda **kwargs: kwargs
    module.Audio = lambda samples, rate: ("audio", samples, rate)
    module.Image = lambda pixels: ("image", pixels)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_csv_holds_exactly_what_was_logged(tmp_path):
    tracker = CsvTracker(tmp_path)
    tracker.start(0, 10)
    tracker.log(2, 0.25, "train", {"loss": 1 / 3, "lr": 3e-4})
    tracker.log(4, 0.5, "validation", {"loss": float("nan")})
    first = (tmp_path / "metrics.csv").read_text().splitlines()
    assert first[:2] == ["step,epoch,split,metric,value", f"2,0.25,train,loss,{1 / 3!r}"]
    tracker.close()
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows[:2] == [Row(2, 0.25, "train", "loss", 1 / 3), Row(2, 0.25, "train", "lr", 3e-4)]
    assert rows[2].value != rows[2].value and rows[2].split == "validation"


def test_csv_drops_what_comes_after_the_resumed_step(tmp_path):
    tracker = CsvTracker(tmp_path)
    tracker.start(0, 10)
    for step in (2, 4, 6):
        tracker.log(step, step / 10, "train", {"loss": float(step)})
    tracker.close()
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("8,0.8,train,lo")  # a crash in the middle of a line
    resumed = CsvTracker(tmp_path)
    resumed.start(4, 10)
    resumed.log(5, 0.5, "train", {"other": 1.0})
    resumed.close()
    rows = [(row.step, row.metric) for row in read_metrics(tmp_path / "metrics.csv")]
    assert rows == [(2, "loss"), (4, "loss"), (5, "other")]
    afresh = CsvTracker(tmp_path)
    afresh.start(0, 10)
    afresh.close()
    assert read_metrics(tmp_path / "metrics.csv") == []


def test_other_files_are_no_metrics(tmp_path):
    path = tmp_path / "metrics.csv"
    with pytest.raises(FileNotFoundError, match="there is no .*metrics.csv; training writes it"):
        read_metrics(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is not a metrics file"):
        read_metrics(path)
    path.write_text("step,epoch,split,metric,value\nx,0,train,loss,1\n")
    with pytest.raises(ValueError, match="metrics.csv is damaged"):
        read_metrics(path)


def test_the_console_is_quiet_off_a_terminal(capsys):
    console = ConsoleTracker("run")
    console.start(0, 4)
    console.log(2, 0.1, "train", {"loss": 1.0})
    console.warn("look here")
    console.close()
    out = capsys.readouterr()
    assert out.out == "" and out.err == "warning: look here\n"


def test_trackers_pass_everything_on(tmp_path):
    one, two = CsvTracker(tmp_path / "a"), CsvTracker(tmp_path / "b")
    both = Tracker([one, AudioTracker(tmp_path / "a"), two, ConsoleTracker("run")])
    both.start(0, 1)
    both.log(1, 1.0, "train", {"loss": 2.0})
    both.warn("nothing")
    both.log_audio(1, "bass", {"original": torch.ones(2000)}, 8000)
    both.close()
    assert read_metrics(tmp_path / "a/metrics.csv") == read_metrics(tmp_path / "b/metrics.csv")
    assert len(read_metrics(tmp_path / "a/metrics.csv")) == 1
    assert [path.name for path in (tmp_path / "a/media").iterdir()] == ["step_00000001"]
    assert not (tmp_path / "b/media").exists()


def test_mode_auto(monkeypatch, tmp_path):
    assert WandbConfig().resolved() == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    assert WandbConfig().resolved() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://other.example")
    assert WandbConfig().resolved() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert WandbConfig().resolved() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert WandbConfig().resolved() == "disabled"
    assert WandbConfig(mode="offline").resolved() == "offline"


def test_wandb_gets_metrics_config_and_name(tmp_path, wandb, capsys):
    config = WandbConfig(project="p", entity="e", tags=("a", "b"))
    tracker = WandbTracker(tmp_path / "run", config, {"step": 1})
    tracker.log(3, 0.5, "train", {"loss": 2.0})
    tracker.warn("bad")
    tracker.close()
    (run,) = wandb.runs
    assert run.logged == [{"train/loss": 2.0, "epoch": 0.5, "step": 3}]
    assert run.kwargs["project"] == "p" and run.kwargs["entity"] == "e"
    assert run.kwargs["tags"] == ("a", "b") and run.kwargs["name"] == "run"
    assert run.kwargs["mode"] == "offline" and run.kwargs["config"] == {"step": 1}
    assert run.finished and run.alerts == []
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "wandb sync" in said
    assert said.endswith("offline-run-0-abc123\n")


def test_a_resumed_run_keeps_its_wandb_id(tmp_path, wandb):
    for _ in range(2):
        WandbTracker(tmp_path, WandbConfig(mode="online"), {}).close()
    first, second = (run.kwargs for run in wandb.runs)
    assert first["id"] is None and first["resume"] is None
    assert second["id"] == "abc123" and second["resume"] == "allow"
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": "abc123"}


def test_an_offline_run_that_goes_on_is_uploaded_with_what_came_before(tmp_path, wandb, capsys):
    for _ in range(3):
        tracker = WandbTracker(tmp_path, WandbConfig(mode="offline"), {})
        (tmp_path / "wandb" / f"offline-run-{len(wandb.runs) - 1}-abc123").mkdir(parents=True)
        (tmp_path / "wandb" / f"offline-run-{len(wandb.runs) - 1}-other").mkdir()
        tracker.close()
    assert [run.kwargs["resume"] for run in wandb.runs] == [None, "allow", "allow"]
    assert [run.kwargs["id"] for run in wandb.runs] == [None, "abc123", "abc123"]
    for number, line in enumerate(capsys.readouterr().out.splitlines()):
        folders = [tmp_path / f"wandb/offline-run-{n}-abc123" for n in range(number + 1)]
        expected = f"upload with: wandb sync {' '.join(map(str, folders))}"
        assert line == f"W&B is offline; {expected}"


def test_wandb_gets_audio_and_one_picture(tmp_path, wandb):
    tracker = WandbTracker(tmp_path, WandbConfig(), {})
    audio = {"original": torch.linspace(-1, 1, 3000), "reconstruction": torch.ones(3000).half()}
    tracker.log_audio(7, "bass", audio, 8000)
    (logged,) = wandb.runs[0].logged
    kind, pixels = logged.pop("bass/spectrogram")
    assert kind == "image" and pixels.dtype == np.uint8 and pixels.ndim == 3
    assert logged.pop("step") == 7
    assert logged.keys() == {"bass/original", "bass/reconstruction"}
    for label, waveform in audio.items():
        kind, samples, rate = logged[f"bass/{label}"]
        assert (kind, rate) == ("audio", 8000) and np.array_equal(samples, waveform.float().numpy())


def test_disabled_does_not_even_import_wandb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    tracker = WandbTracker(tmp_path, WandbConfig(mode="disabled"), {})
    tracker.log(1, 0.0, "train", {"loss": 1.0})
    tracker.log_audio(1, "bass", {"original": torch.ones(2000)}, 8000)
    tracker.warn("x")
    tracker.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ("import", "init", "log", "warn", "media", "close"))
def test_a_wandb_failure_warns_once_and_training_goes_on(
    tmp_path, wandb, where, capsys, monkeypatch
):
    def fail(*args, **kwargs):
        raise RuntimeError("no\nnetwork")

    if where == "import":
        monkeypatch.setitem(sys.modules, "wandb", None)
    if where == "init":
        wandb.init = fail
    if where == "media":
        wandb.Audio = fail
    name = {"log": "log", "warn": "alert", "close": "finish"}.get(where)
    if name:
        monkeypatch.setattr(FakeRun, name, fail)
    tracker = WandbTracker(tmp_path, WandbConfig(mode="online"), {})
    for step in range(3):
        tracker.log(step, 0.0, "train", {"loss": 1.0})
        tracker.warn("x")
        tracker.log_audio(step, "bass", {"original": torch.ones(2000)}, 8000)
    tracker.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("warning: W&B failed")


def test_the_real_wandb_offline(tmp_path, capfd):
    """No key, no network, nothing on the screen but how to upload it; a second start joins it."""
    for start in (1, 2):
        tracker = WandbTracker(tmp_path, WandbConfig(mode="offline"), {"lr": 0.1})
        tracker.log(start, 0.5, "train", {"loss": 2.0})
        tracker.log_audio(start, "bass", {"original": torch.linspace(-1, 1, 9000)}, 8000)
        tracker.close()
        run = json.loads((tmp_path / "wandb.json").read_text())["id"]
        folders = sorted(tmp_path.glob(f"wandb/offline-run-*-{run}*"))
        assert len(folders) == start and all(list(f.glob("*.wandb")) for f in folders)
        out = capfd.readouterr()
        assert out.err == "" and out.out.count("\n") == 1
        expected = f"upload with: wandb sync {' '.join(map(str, folders))}"
        assert out.out == f"W&B is offline; {expected}\n"
    for folder in folders:
        (sound,) = folder.glob("files/media/audio/bass/*.wav")
        assert soundfile.info(sound).frames == 9000 and soundfile.info(sound).samplerate == 8000
        assert len(list(folder.glob("files/media/images/bass/*.png"))) == 1
