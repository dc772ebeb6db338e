"""Sound and pictures of a run: what the files hold, which of them stay; none stops training."""

import os
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import torch

from jukebox_core import audio
from jukebox_core.audio.pictures import LOUDNESS, LOWEST, ROWS
from jukebox_core.datasets.batches import collate
from jukebox_core.presets import PRESETS
from jukebox_core.training.audio_logging import (
    AudioTracker,
    pixels,
    reconstructions,
    spectrograms,
)
from jukebox_core.vqvae.model import VQVAE

RATE = 8000
TONE = 0.5 * torch.sin(2 * torch.pi * 1000 / RATE * torch.arange(6000))


def both(level=0.5):
    return {"original": TONE, "reconstruction": level * TONE}


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_files_hold_the_waveforms_and_their_picture(tmp_path):
    AudioTracker(tmp_path).log_audio(500, "bass", both(), RATE)
    folder = tmp_path / "media/step_00000500"
    assert names(tmp_path) == [
        f"media/step_00000500/bass.{end}" for end in ("original.wav", "png", "reconstruction.wav")
    ]
    for label, waveform in both().items():
        stored, rate = audio.load(folder / f"bass.{label}.wav")
        assert rate == RATE
        assert torch.equal(stored[0], (waveform.double() * 2**15).round().float() / 2**15)
    picture = matplotlib.image.imread(folder / "bass.png")
    assert np.array_equal((picture * 255).round(), pixels(spectrograms(both(), RATE)))


def test_the_panels_share_one_scale():
    figure = spectrograms(both(level=0.01), RATE)
    first, second = (panel.images[0] for panel in figure.axes[:2])
    assert [panel.get_title() for panel in figure.axes[:2]] == ["original", "reconstruction"]
    assert first.get_clim() == second.get_clim() == LOUDNESS
    assert first.get_array().max() - second.get_array().max() == pytest.approx(40, abs=1e-3)
    row = np.abs(np.geomspace(LOWEST, RATE / 2, ROWS) - 1000).argmin()
    assert (abs(first.get_array()[:, 2:-2].argmax(0) - row) <= 1).all()


@pytest.mark.parametrize("waveform", (torch.ones(1), torch.full((2000,), torch.nan)))
def test_any_waveform_has_a_finite_picture(waveform):
    figure = spectrograms({"original": waveform}, RATE)
    assert np.isfinite(figure.axes[0].images[0].get_array()).all()


def test_only_the_last_steps_stay(tmp_path):
    tracker = AudioTracker(tmp_path, keep=2)
    for step in (5, 50, 500):
        for name in ("bass", "drums"):
            tracker.log_audio(step, name, both(), RATE)
        assert len(names(tmp_path)) == min(2, 1 + (step > 5)) * 6
    found = sorted(path.name for path in (tmp_path / "media").iterdir())
    assert found == ["step_00000050", "step_00000500"]
    none = tmp_path / "none"
    AudioTracker(none, keep=0).log_audio(5, "bass", both(), RATE)
    assert not none.exists()
    with pytest.raises(ValueError, match="keep is -1"):
        AudioTracker(tmp_path, keep=-1)


def test_a_run_that_goes_on_makes_later_steps_again(tmp_path):
    def run(folder, steps, resumed=0):
        tracker = AudioTracker(folder, keep=2)
        tracker.start(resumed, 9)
        for step in steps:
            tracker.log_audio(step, "bass", both(step / 10), RATE)
        tracker.close()

    run(tmp_path / "whole", (2, 4, 6))
    run(tmp_path / "parts", (2, 4, 6, 8))  # killed after step 8, its last checkpoint being of 4
    run(tmp_path / "parts", (6,), resumed=4)
    kept = names(tmp_path / "whole")
    assert kept[-1].startswith("media/step_00000006") and len(kept) == 6
    # What was kept of step 4 had already gone when 6 and 8 were written.
    again = [name for name in kept if "00000006" in name]
    assert names(tmp_path / "parts") == again
    for name in again:
        content = [(tmp_path / part / name).read_bytes() for part in ("whole", "parts")]
        assert content[0] == content[1]


def test_what_the_user_put_among_the_media_stays(tmp_path):
    mine = ["media/step_00000001/notes.wav", "media/step_notes/a.png", "media/step_1/b.png"]
    tracker = AudioTracker(tmp_path, keep=1)
    tracker.log_audio(1, "bass", both(), RATE)
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    for step in (2, 3):
        tracker.log_audio(step, "bass", both(), RATE)
    tracker.start(0, 9)
    assert set(mine) < set(names(tmp_path))
    assert not [name for name in names(tmp_path) if "00000002" in name or "00000003" in name]


@pytest.mark.parametrize("why", ("not finite", "no folder"))
def test_what_cannot_be_written_is_one_line(tmp_path, capsys, why):
    if why == "no folder":
        (tmp_path / "media").write_text("in the way")
    audio_of = {"original": TONE * (torch.nan if why == "not finite" else 1)}
    AudioTracker(tmp_path).log_audio(5, "bass", audio_of, RATE)
    said = capsys.readouterr().err
    assert said.startswith("warning: no audio of step 5 (") and said.count("\n") == 1
    assert not [name for name in names(tmp_path) if name.endswith((".wav", ".png"))]


def test_reconstructions_are_of_the_first_item_of_every_row():
    torch.manual_seed(0)
    codec = VQVAE(PRESETS["tiny"].vqvae).eval()
    items = 0.1 * torch.randn(4, 3, 64 * codec.config.hop)  # [B, R, T]
    before = torch.get_rng_state()
    clips = reconstructions(codec, collate(list(items)), ("bass", "drums", "mixture"))
    assert [clip.name for clip in clips] == ["bass", "drums", "mixture"]
    assert {clip.rate for clip in clips} == {codec.config.sample_rate}
    for clip, waveform in zip(clips, items[0], strict=True):
        expected = codec(waveform.unsqueeze(0))[codec.top].audio[0]
        assert torch.equal(clip.audio["original"], waveform)
        assert torch.allclose(clip.audio["reconstruction"], expected, atol=1e-5)
        assert not clip.audio["reconstruction"].requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_the_picture_library_is_loaded_with_the_first_picture():
    names = "audio_logging, tracking"
    code = f"import sys; from jukebox_core.training import {names}; print(sorted(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert (
        "'jukebox_core.training.audio_logging'" in result.stdout
        and "'matplotlib'" not in result.stdout
    )
