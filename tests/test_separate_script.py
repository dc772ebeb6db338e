"""scripts.separate from file to files, and every way its input can be wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hybrid
from jukebox_core import audio
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.rejection import RejectionMarginals
from jukebox_core.separation.selection import MinimumBayesRisk
from jukebox_core.separation.settings import Settings
from scripts._methods import PUBLISHED_METHODS
from scripts.separate import main

REPOSITORY = Path(__file__).parent.parent
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


@pytest.mark.parametrize("method", PUBLISHED_METHODS)
def test_a_short_mono_wav(tiny_models, tmp_path, method):
    mixture = music(2, 22_050, 1)
    audio.save(tmp_path / "Ünı mix.wav", mixture, 22_050)
    assert separate(tiny_models, tmp_path / "out", tmp_path / "Ünı mix.wav", method=method) == 0
    folder = tmp_path / "out" / "Ünı mix"
    stems = {path.stem: audio.load(path) for path in folder.glob("*.wav")}
    assert set(stems) == {"bass", "drums"}
    for stem, rate in stems.values():
        assert rate == 22_050 and stem.shape == mixture.shape
    total = sum(stem for stem, _ in stems.values())
    torch.testing.assert_close(total, mixture, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "flags",
    (
        ("--sampler", "particle"),
        ("--sampler", "beam"),
        ("--sampler", "ancestral", "--top-k", "3"),
        ("--shifts", "1"),
        ("--precision", "bfloat16"),
    ),
)
def test_stems_sum_to_the_mixture_with_every_sampler_and_precision(tiny_models, tmp_path, flags):
    mixture = music(1, 22_050, 1)
    audio.save(tmp_path / "mix.wav", mixture, 22_050)
    assert separate(tiny_models, tmp_path / "out", tmp_path / "mix.wav", flags=flags) == 0
    stems = [audio.load(p)[0] for p in sorted((tmp_path / "out" / "mix").glob("*.wav"))]
    assert len(stems) == 2 and not torch.equal(*stems)
    torch.testing.assert_close(stems[0] + stems[1], mixture, atol=1e-4, rtol=0)


def test_a_stereo_mp3_of_another_rate(tiny_models, tmp_path):
    audio.save(tmp_path / "song.mp3", music(20, 44_100, 2), 44_100)
    decoded, _ = audio.load(tmp_path / "song.mp3")
    assert separate(tiny_models, tmp_path / "out", tmp_path / "song.mp3") == 0
    stems = [audio.load(p) for p in sorted((tmp_path / "out" / "song").glob("*.wav"))]
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
    separator = hybrid.load_separator(tiny_models, candidates=2)
    for source, stem in separator(mixture, 22_050, seed=7, batch=64).items():
        assert torch.equal(audio.load(tmp_path / "m" / f"{source}.wav")[0], stem)


def test_flags_of_selection_and_mask_reach_the_separator(tiny_models, tmp_path):
    mixture = music(1, 22_050, 1)
    audio.save(tmp_path / "m.wav", mixture, 22_050)
    masks = {"mask_power": 3.0, "mask_n_fft": 1024, "calibration": False}
    options = {"selection": "rejection-marginals", "weights": "bayes-risk", "shifts": 2, **masks}
    separator = hybrid.load_separator(tiny_models, Settings(**options), candidates=4)
    assert separator.selection == RejectionMarginals() and separator.weights == MinimumBayesRisk()
    assert separator.shifts == 2 and separator.mask == RatioMask(3.0, 1024, 256)
    for refine in (True, False):
        out = tmp_path / f"refine {refine}"
        unused = ("selection",) if refine else ("weights", *masks)
        used = {name: value for name, value in options.items() if name not in unused}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in used.items()]
        more = ("--candidates", "4", *(() if refine else ("--no-refine",)))
        assert separate(tiny_models, out, tmp_path / "m.wav", flags=(*flags, *more)) == 0
        for source, stem in separator(mixture, 22_050, refine=refine, batch=64).items():
            assert torch.equal(audio.load(out / "m" / f"{source}.wav")[0], stem)


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


BAD = [
    ("missing", "bad.wav"),
    ("text", "bad.wav"),
    ("nothing", "bad.wav"),
    ("empty", "bad.wav"),
    ("silent", "is silent throughout"),
    ("nan", "NaN"),
]


@pytest.mark.parametrize(("kind", "said"), BAD)
def test_bad_audio_is_one_line_and_nothing_is_written(tiny_models, tmp_path, capsys, kind, said):
    bad = bad_mixture(kind, tmp_path)
    assert separate(tiny_models, tmp_path / "out", bad) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and said in error[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "said"), BAD)
def test_bad_audio_among_others_is_told_at_the_end(tiny_models, tmp_path, capsys, kind, said):
    good = tmp_path / "good.wav"
    audio.save(good, music(1, 22_050, 1), 22_050)
    bad = bad_mixture(kind, tmp_path)
    assert separate(tiny_models, tmp_path / "out", bad, good) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and said in error[0]
    if kind == "missing":  # a slip of the pen: refused before any work
        assert not (tmp_path / "out").exists()
    else:
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["good"]


def test_damage_in_the_middle_of_a_file(tiny_models, tmp_path, capsys):
    audio.save(tmp_path / "whole.flac", music(20, 22_050, 1), 22_050)
    content = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    assert separate(tiny_models, tmp_path / "out", tmp_path / "cut.flac") == 1
    error = capsys.readouterr().err.strip()
    assert "cut.flac is damaged" in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def written(folder):
    """{relative path: bytes} of all stems."""
    files = [path for path in folder.rglob("*") if path.suffix in (".wav", ".flac")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_finished_files_are_left_as_they_are(tiny_models, tmp_path, capsys):
    song = tmp_path / "m.wav"
    audio.save(song, music(1, 22_050, 1), 22_050)
    record = tmp_path / "out" / "m" / "separation.json"

    def run(*flags):
        before = record.stat().st_ino if record.exists() else None
        assert separate(tiny_models, tmp_path / "out", song, flags=flags) == 0
        said = capsys.readouterr().out
        done = record.stat().st_ino == before
        assert ("finished in" in said) == done and ("s of audio in" in said) != done
        return done

    assert not run()
    first = written(tmp_path / "out")
    content = json.loads(record.read_text())
    assert content["identity"]["settings"]["seed"] == 0
    assert content["separator"]["candidates"] == 2 and content["audio"]["frames"] == 22_050
    assert run() and run("--batch", "1")  # what does not change the result does not count
    song.touch()
    assert run()  # the same content
    assert not run("--overwrite") and written(tmp_path / "out") == first
    assert not run("--seed", "1") and written(tmp_path / "out") != first
    assert not run() and written(tmp_path / "out") == first
    audio.save(song, music(1, 22_050, 1, seed=5), 22_050)
    assert not run()
    (tmp_path / "out" / "m" / "bass.wav").unlink()
    assert not run()
    record.write_text("{")  # what these stems are is no longer recorded
    assert separate(tiny_models, tmp_path / "out", song, flags=("--overwrite",)) == 1
    assert "bass.wav" in capsys.readouterr().err


def test_a_change_of_the_models_makes_the_files_again(tiny_models, tmp_path, capsys):
    models = shutil.copytree(tiny_models, tmp_path / "models")
    audio.save(tmp_path / "m.wav", music(1, 22_050, 1), 22_050)
    for said in ("s of audio in", "finished in"):
        assert separate(models, tmp_path / "out", tmp_path / "m.wav") == 0
        assert said in capsys.readouterr().out
    meta = models / "linearisation" / "prior_bass" / "meta.json"
    meta.write_text(meta.read_text() + " ")
    assert separate(models, tmp_path / "out", tmp_path / "m.wav") == 0
    assert "s of audio in" in capsys.readouterr().out


def test_a_folder_stands_for_the_audio_in_it(tiny_models, tmp_path, capsys):
    songs = tmp_path / "my söngs"
    audio.save(songs / "one.v2.wav", music(1, 22_050, 1), 22_050)
    audio.save(songs / "Disc 1" / "zwei ß.flac", music(1, 22_050, 1) / 2, 22_050)
    audio.save(songs / ".hidden" / "x.wav", music(1, 22_050, 1), 22_050)
    (songs / "notes.txt").write_text("not audio")
    out = songs / "out"  # inside: the stems must not be taken for mixtures
    for _ in range(2):
        assert separate(tiny_models, out, songs) == 0
    stems = {f"{song}/{s}.wav" for song in ("one.v2", "Disc 1/zwei ß") for s in ("bass", "drums")}
    assert set(written(out)) == stems
    (tmp_path / "empty").mkdir()
    assert separate(tiny_models, out, tmp_path / "empty") == 1
    assert "has no audio files" in capsys.readouterr().err
    audio.save(songs / "Disc 1.wav", music(1, 22_050, 1), 22_050)
    assert separate(tiny_models, out, songs) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 2 and "zwei ß.flac" in said.err
    assert str(out / "Disc 1") in said.err and set(written(out)) == stems
    assert set(written(out)) == stems


def test_processes_share_the_files(tiny_models, tmp_path):
    songs = tmp_path / "söngs of mine"
    for number, seconds in enumerate((1, 3, 2)):
        audio.save(songs / f"ä {number}.wav", music(seconds, 22_050, 1, number), 22_050)
    (songs / "bad.wav").write_text("this is not audio")
    assert separate(tiny_models, tmp_path / "one", songs, flags=("--threads", "1")) == 1
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "-m", "scripts.separate", "--method", "hybrid", "--threads", "1"]
    command += ["--models", str(tiny_models), "--output", str(tmp_path / "two"), *FAST, str(songs)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "bad.wav" in errors[0]
    assert result.stdout.count("s of audio in") == 3
    assert len(written(tmp_path / "one")) == 6
    assert written(tmp_path / "two") == written(tmp_path / "one")
    result = subprocess.run(
        [*command[:-1], str(songs / "missing.wav")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode != 0 and errors == [
        f"error: there is no audio file {songs / 'missing.wav'}"
    ]


PEAK = """
import sys
import torch
from scripts import separate
from jukebox_core.separation.method import Method
from jukebox_core.separation.samples import JointSamples

def draw(priors, likelihood, codes, candidates, generator, progress=None, factors=None):
    shape = (len(codes), candidates, codes.shape[1])
    drawn = torch.randint(likelihood.n_codes, shape, generator=generator)
    zeros = torch.zeros(shape[:2])
    names = ("bass", "drums")
    return JointSamples(dict.fromkeys(names, drawn), dict.fromkeys(names, zeros), zeros)

draw.settings, draw.independent = {}, True
load = Method.load_separator
def load_fast(*args, **options):
    separator = load(*args, **options)
    separator.sampler = draw  # samples take minutes and belong to one window
    return separator

Method.load_separator = load_fast
main = separate.main
status = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", peak.split()[1])
sys.exit(status)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_song(tiny_models, tmp_path):
    def peak(seconds):
        song = tmp_path / f"{seconds}.wav"
        audio.save(song, music(seconds, 44_100, 2), 44_100)
        common = ["--models", tiny_models, "--output", tmp_path / "out", "--candidates", "1"]
        command = [sys.executable, "-c", PEAK, *common, "--batch", "16", "--device", "cpu", song]
        run = subprocess.run(
            [str(word) for word in command],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(run.stdout.split()[-1]) / 1024  # MiB

    short, long = peak(20), peak(120)
    print(f"peak of 20 s: {short:.1f} MiB, of 120 s: {long:.1f} MiB")
    # A song in memory is 40 MiB per copy of 120 s, and there were several.
    assert long - short < 8


@pytest.mark.parametrize(
    ("method", "missing", "said"),
    [
        ("hybrid", "linearisation/counts.safetensors", "counts.safetensors"),
        ("lqvae", "linearisation/sums.safetensors", "sums.safetensors"),
        ("lass", "reconstruction/prior_drums", "a prior_SOURCE folder per source"),
        ("lass", "reconstruction/vqvae", "vqvae"),
        ("lass", "reconstruction/vqvae/weights.safetensors", "weights.safetensors"),
        ("hybrid", "linearisation", "linearisation is missing"),
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
