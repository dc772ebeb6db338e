"""A cheap, valid command of every program: what the sweep changes one flag of.

Words that begin with in/ are inputs (`sweep_inputs`), PORT is a free port. A program without an
entry here fails a test, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

_TRAIN = "--data in/data --output out --preset tiny --device cpu --wandb disabled --train.steps 2"
_CHUNKS = "--chunks 1 --candidates 4 --chunk-codes 128"
_STUDY = f"--models in/models --data in/data {_CHUNKS}"


@dataclass(frozen=True)
class Base:
    """A program's base command.

    instead: another base command for some flags, where the first would not look at them.
    ready: said on stdout when the flags are accepted; the program is then stopped.
    writes: patterns of inputs that a run which succeeds may change or add.
    """

    words: str
    instead: Mapping[str, str] = field(default_factory=dict)
    ready: str | None = None
    writes: tuple[str, ...] = ()

    def inputs(self) -> set[str]:
        """Names of what the commands read."""
        words = " ".join([self.words, *self.instead.values()]).split()
        return {word.split("/")[1] for word in words if word.startswith("in/")}

    def command(self, flag: str) -> dict[str, list[str]]:
        """{flag: values} of the command whose flag is replaced; positional ones under ''."""
        found: dict[str, list[str]] = {"": []}
        last = ""
        for word in shlex.split(self.instead.get(flag, self.words)):
            if word.startswith("--"):
                last = word
                found[last] = []
            else:
                found[last].append(word)
        return found


_CONVERT_SUMS = (
    "--kind sums --input in/sums.pt --output out.safetensors --vqvae in/models/linearisation/vqvae"
)
_CONVERT_COUNTS = (
    "--kind counts --input in/counts.npz --output out.safetensors"
    " --vqvae in/models/linearisation/vqvae --sources bass drums"
)
_COUNT = (
    "--vqvae in/models/linearisation/vqvae --data in/data --output out.safetensors --iterations 2"
    " --pairs 2 --crop 64 --device cpu"
)
_VQVAE = f"{_TRAIN} --objective linearisation --keep-media 0 --bandwidth-seconds 1"

_NEURAL = (
    "in/song.wav --models in/models --output out --method hybrid-neural --candidates 2 --device cpu"
)

BASES: Mapping[str, Base] = {
    "ablate": Base(f"{_STUDY} --output out --no-parts --seeds 1 --jobs 1"),
    "ablate_training": Base(
        f"--data in/data --output out --preset tiny {_CHUNKS} --count-iterations 1 --cores 1"
        " --variants",
        ready="python -m scripts.",
    ),
    "app": Base(
        "--models in/models --port PORT --examples in/song.wav --device cpu",
        ready="the page is at",
    ),
    "calibrate": Base(
        "--vqvae in/models/linearisation/vqvae --data in/data --output out.safetensors --crops 2"
        " --codes 128 --n-fft 256 --device cpu"
    ),
    "check_parity": Base("--fixtures in/fixtures --output out.json --markdown out.md"),
    "compare_models": Base(
        "--models in/models in/again --data in/data --output out.json --method hybrid"
        " --candidates 2 --threads 1"
    ),
    "convert_upstream": Base(
        "--kind codec --input in/codec.pth.tar --output out",
        instead={
            "--alpha": _CONVERT_SUMS,
            "--vqvae": _CONVERT_SUMS,
            "--sources": _CONVERT_COUNTS,
        },
    ),
    "count_sums": Base(
        _COUNT,
        instead={
            "--merge": "--output out.safetensors --merge in/models/linearisation/counts.safetensors"
        },
    ),
    "demo": Base(
        "--output out --preset tiny --tracks 4 --seconds 2 --chunks 1 --count-iterations 1"
        " --cores 1",
        ready="python -m scripts.",
    ),
    "evaluate": Base(
        f"--models in/models --data in/data --output out.json {_CHUNKS} --device cpu"
        " --methods hybrid --baselines mixture --examples 1"
    ),
    "make_arrangements": Base("--output out --songs 1 --mma in/mma/mma"),
    "make_synthetic": Base(
        "--output out --tracks 1 --seconds 1 --sample-rate 8000 --parts bass drums --workers 1",
        instead={
            "--midi-dir": "--midi-dir in/midi --output out --seconds 1 --sample-rate 8000"
            " --parts bass drums --workers 1",
            "--midi-share": "--midi-dir in/midi --midi-share 0.5 --output out --tracks 1"
            " --seconds 1 --sample-rate 8000 --parts bass drums --workers 1",
            "--groove-share": "--groove in/groove --output out --tracks 1 --seconds 1"
            " --sample-rate 8000 --parts bass drums --workers 1",
        },
    ),
    "plot_losses": Base("--models in/models --output out"),
    "precompute_sums": Base("--vqvae in/models/linearisation/vqvae --output out.safetensors"),
    "prepare_slakh": Base(
        "--slakh in/slakh --output out --sample-rate 8000 --workers 1",
        instead=dict.fromkeys(
            ("--split", "--seed"),
            "--slakh in/plain --output out --sample-rate 8000 --workers 1 --split 0.4 0.3 0.3",
        ),
    ),
    "pretrain": Base(
        "--output out --package out/package --tracks 20 --length 0.01 --cores 1",
        ready="python -m scripts.",
    ),
    "report": Base("--runs in/runs --output out.html"),
    "score_likelihood": Base(
        "--models in/models --data in/data --output out.json --iterations 1 --smoothings 3"
        " --sigmas 0.4 --exponents 1 --compared 64 --threads 1"
    ),
    "score_uncertainty": Base(f"{_STUDY} --output out.json --method hybrid"),
    "separate": Base(
        "in/song.wav --models in/models --output out --method hybrid --candidates 2 --device cpu",
        instead={
            "--neural-exponent": _NEURAL,
            "--prior": _NEURAL,
            "--mask-network": _NEURAL,
            "--calibration": "in/song.wav --models in/models --output out --candidates 2"
            " --device cpu --mask-n-fft 256",
        },
    ),
    "slakh_benchmark": Base(
        "--slakh in/slakh --models in/models --output out --methods hybrid --chunks 1"
        " --chunks-per-song 1 --candidates 4 --cores 1",
        ready="python -m scripts.",
    ),
    "train_likelihood": Base(f"{_TRAIN} --vqvae in/models/linearisation/vqvae"),
    "train_mask": Base(_TRAIN),
    "train_mask_network": Base(f"{_TRAIN} --models in/models --method neural"),
    "train_prior": Base(f"{_TRAIN} --vqvae in/models/linearisation/vqvae --source bass"),
    "train_vqvae": Base(
        _VQVAE,
        instead={"--loss.spectral-stft": f"{_VQVAE} --loss.spectral 1"},
    ),
    "training_memory": Base("--preset tiny --memory 1 --json"),
    "tune": Base(
        f"{_STUDY} --method hybrid --budget 1 --jobs 1 --sizes 2", writes=("in/models/tuned/*",)
    ),
}
