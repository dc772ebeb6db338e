"""scripts.separate from file to files, and every way its input can be wrong."""

import json
import shutil

import pytest
import torch

from jukebox_core import audio
from scripts._models import METHODS, build_separator
from scripts.separate import main

FAST = ["--device", "cpu", "--candidates", "2", "--batch", "64"]


def music(seconds, rate, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(int(seconds * rate)) / rate
    tone = 0.3 * torch.sin(2 * torch.pi * 110 * time)
    noise = 0.1 * torch.randn(channels, len(time), generator=generator)
    return (tone + noise).clamp(-1, 1)


def separate(models, output, *mixtures, method="hybrid", flags=()):
    common = ["--method", method, "--models", str(models), "--output", str(output), *FAST]
    return main([*common, *flags, *map(str, mixtures)])


@pytest.mark.parametrize("method", METHODS)
def test_a_short_mono_wav(tiny_models, tmp_path, method):
    mixture = music(2, 22_050, 1)
    audio.save(tmp_path / "Ünı mix.wav", mixture, 22_050)
    assert separate(tiny_models, tmp_path / "out", tmp_path / "Ünı mix.wav", method=method) == 0
    folder = tmp_path / "out" / "Ünı mix"
    stems = {path.stem: audio.load(path) for path in folder.iterdir()}
    assert set(stems) == {"bass", "drums"}
    for stem, rate in stems.values():
        assert rate == 22_050 and stem.shape == mixture.shape
    total = sum(stem for stem, _ in stems.values())
    torch.testing.assert_close(total, mixture, atol=1e-4, rtol=0)


def test_a_stereo_mp3_of_another_rate(tiny_models, tmp_path):
    audio.save(tmp_path / "song.mp3", music(20, 44_100, 2), 44_100)
    decoded, _ = audio.load(tmp_path / "song.mp3")
    assert separate(tiny_models, tmp_path / "out", tmp_path / "song.mp3") == 0
    stems = [audio.load(p) for p in sorted((tmp_path / "out" / "song").iterdir())]
    assert [rate for _, rate in stems] == [44_100, 44_100]
    torch.testing.assert_close(stems[0][0] + stems[1][0], decoded, atol=1e-4, rtol=0)


def test_several_files_flac_out_and_the_raw_decode(tiny_models, tmp_path):
    for i, (suffix, rate) in enumerate((("ogg", 32_000), ("flac", 16_000))):
        audio.save(tmp_path / f"{i}.{suffix}", 0.5 * music(1, rate, 1 + i, i), rate)
    files = [tmp_path / "0.ogg", tmp_path / "1.flac"]
    flags = ("--format", "flac", "--no-refine")
    assert separate(tiny_models, tmp_path / "out", *files, flags=flags) == 0
    for i, rate in enumerate((32_000, 16_000)):
        for source in ("bass", "drums"):
            stem, found = audio.load(tmp_path / "out" / str(i) / f"{source}.flac")
            assert (found, *stem.shape) == (rate, 1 + i, rate)


def test_the_command_writes_what_the_object_returns(tiny_models, tmp_path):
    mixture = music(1, 22_050, 1)
    audio.save(tmp_path / "m.wav", mixture, 22_050)
    assert separate(tiny_models, tmp_path, tmp_path / "m.wav", flags=("--seed", "7")) == 0
    separator = build_separator("hybrid", tiny_models, candidates=2)
    for source, stem in separator(mixture, 22_050, seed=7, batch=64).items():
        assert torch.equal(audio.load(tmp_path / "m" / f"{source}.wav")[0], stem)


def bad_mixture(kind, folder):
    path = folder / "bad.wav"
    if kind == "text":
        path.write_text("this is not audio")
    elif kind == "nothing":
        path.write_bytes(b"")
    elif kind != "missing":
        samples = {"empty": 0, "silent": 22_050, "nan": 100}[kind]
        import numpy as np
        import soundfile

        data = np.zeros(samples, dtype=np.float32)
        data[-1:] = np.nan if kind == "nan" else 0
        soundfile.write(path, data, 22_050, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "bad.wav"),
        ("text", "bad.wav"),
        ("nothing", "bad.wav"),
        ("empty", "bad.wav"),
        ("silent", "is silent throughout"),
        ("nan", "NaN"),
    ],
)
def test_bad_audio_is_one_line_and_nothing_is_written(tiny_models, tmp_path, capsys, kind, said):
    good = tmp_path / "good.wav"
    audio.save(good, music(1, 22_050, 1), 22_050)
    bad = bad_mixture(kind, tmp_path)
    assert separate(tiny_models, tmp_path / "out", good, bad) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and said in error[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "missing", "said"),
    [
        ("hybrid", "linearisation/counts.safetensors", "make it with scripts.count_sums"),
        ("lqvae", "linearisation/sums.safetensors", "make it with scripts.precompute_sums"),
        ("lass", "reconstruction/prior_drums", "train them with scripts.train_prior"),
        ("lass", "reconstruction/vqvae", "vqvae"),
        ("lass", "reconstruction/vqvae/weights.safetensors", "weights.safetensors"),
        ("hybrid", "linearisation", "is missing; hybrid needs the parts trained there"),
    ],
)
def test_a_models_folder_without_a_part(tiny_models, tmp_path, capsys, method, missing, said):
    models = shutil.copytree(tiny_models, tmp_path / "models")
    gone = models / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    audio.save(tmp_path / "m.wav", music(1, 22_050, 1), 22_050)
    assert separate(models, tmp_path / "out", tmp_path / "m.wav", method=method) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and said in error[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["prior_bass", "counts.safetensors", "sums.safetensors"])
def test_parts_of_different_codecs(tiny_models, tmp_path, capsys, part):
    models = shutil.copytree(tiny_models, tmp_path / "models")
    stolen = models / "reconstruction" / part
    if part == "sums.safetensors":  # the plain family has none: swap the codec instead
        shutil.rmtree(models / "linearisation" / "vqvae")
        shutil.copytree(models / "reconstruction" / "vqvae", models / "linearisation" / "vqvae")
        for source in ("bass", "drums"):
            meta = models / "linearisation" / f"prior_{source}" / "meta.json"
            own = json.loads(
                (models / "reconstruction" / meta.parent.name / "meta.json").read_text()
            )
            content = json.loads(meta.read_text())
            content["vqvae_fingerprint"] = own["vqvae_fingerprint"]
            meta.write_text(json.dumps(content))
    elif stolen.is_dir():
        shutil.rmtree(models / "linearisation" / part)
        shutil.copytree(stolen, models / "linearisation" / part)
    else:
        shutil.copy(stolen, models / "linearisation" / part)
    audio.save(tmp_path / "m.wav", music(1, 22_050, 1), 22_050)
    method = "lqvae" if part == "sums.safetensors" else "hybrid"
    assert separate(models, tmp_path / "out", tmp_path / "m.wav", method=method) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "another codec" in error[0]


def test_mixtures_of_one_name_are_refused(tiny_models, tmp_path, capsys):
    for folder in ("a", "b"):
        audio.save(tmp_path / folder / "m.wav", music(1, 22_050, 1), 22_050)
    files = (tmp_path / "a" / "m.wav", tmp_path / "b" / "m.wav")
    assert separate(tiny_models, tmp_path / "out", *files) == 1
    assert "several mixtures are called m" in capsys.readouterr().err
