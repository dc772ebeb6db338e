"""What README.md and the documents tell people to type works as it stands."""

import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import soundfile
import torch
from commands import blocks, calls, flags, known_flags

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
ALL = [(file, call) for file in DOCUMENTS for block in blocks(file) for call in calls(block)]
SMALL = {"--preset": "tiny", "--tracks": "10", "--seconds": "4"}
"""Values that the step-by-step commands get in the test, by flag."""
MORE = {
    "scripts.count_sums": ["--iterations", "2"],
    "scripts.calibrate": ["--crops", "4", "--codes", "128", "--n-fft", "512"],
    "scripts.evaluate": ["--chunks", "1", "--candidates", "2", "--chunk-codes", "128"],
    "scripts.train_vqvae": ["--train.steps", "4", "--wandb", "disabled"],
    "scripts.train_prior": ["--train.steps", "4", "--wandb", "disabled"],
    "scripts.train_likelihood": ["--train.steps", "4", "--wandb", "disabled"],
    "scripts.train_mask_network": ["--train.steps", "4", "--wandb", "disabled"],
    "scripts.train_mask": ["--train.steps", "4", "--wandb", "disabled"],
}


def small(module, words):
    """The command at tiny size."""
    after = {flag: SMALL[flag] for flag in words if flag in SMALL}
    out = [after.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    return [*out, *MORE.get(module, ())]


@pytest.mark.parametrize("module", sorted({module for _, (module, _) in ALL}))
def test_every_flag_of_every_command_exists(module):
    for file, (name, words) in ALL:
        if name == module:
            unknown = flags(words) - known_flags(module)
            assert not unknown, f"{file.name}: {module} has no {', '.join(unknown)}"


def test_commands_are_found():
    text = "".join(block for file in DOCUMENTS for block in blocks(file))
    assert len(ALL) == text.count("-m scripts.") + text.count("-m benchmarks.") > 30


@pytest.mark.slow
def test_step_by_step_from_songs_to_the_report(tmp_path, monkeypatch):
    (block,) = (b for b in blocks(README) if "scripts.make_synthetic" in b)
    monkeypatch.chdir(tmp_path)
    done = [module for module, _ in calls(block)]
    for module, words in calls(block):
        assert import_module(module).main(small(module, words)) == 0, (module, words)
    assert {"scripts.train_vqvae", "scripts.calibrate", "scripts.report"} <= set(done)
    assert Path("report.html").stat().st_size > 10_000
    assert Path("plots/prior_loss_test.png").is_file()


@pytest.fixture
def arranged(tiny_neural_models, tmp_path, monkeypatch):
    """A folder where the README's paths are: small models, and a song."""
    shutil.copytree(tiny_neural_models, tmp_path / "runs" / "demo" / "models")
    song = 0.1 * torch.randn(22_050, 2, generator=torch.Generator().manual_seed(0))
    soundfile.write(tmp_path / "song.mp3", song.numpy(), 44_100)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_your_own_file(arranged):
    module, words = next(
        call for _, call in ALL if call[0] == "scripts.separate" and "--output" in call[1]
    )
    assert "--models" not in words
    assert import_module(module).main([*words, "--candidates", "2"]) == 0
    stems = {path.name: soundfile.info(path) for path in (arranged / "out" / "song").glob("*.wav")}
    assert set(stems) == {"bass.wav", "drums.wav", "other.wav"}
    for info in stems.values():
        assert (info.samplerate, info.channels) == (44_100, 2)


def test_the_lines_of_python(arranged):
    (code,) = blocks(README, "python")
    found = {}
    exec(compile(code, "README.md", "exec"), found)
    assert set(found["stems"]) == {"bass", "drums", "other"}
    assert all(stem.shape == found["mixture"].shape for stem in found["stems"].values())
    assert torch.allclose(sum(found["stems"].values()), found["mixture"], atol=1e-4)
    assert soundfile.info("bass.wav").samplerate == found["rate"] == 44_100


def test_every_link_leads_somewhere():
    text = README.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}
    assert len(links) > 20
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("http"):
            assert (ROOT / link.partition("#")[0]).exists(), link
