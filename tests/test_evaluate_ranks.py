"""scripts.evaluate in several processes: the scores and examples of one process."""

import json
import sys

import pytest
import torch
from test_count_ranks import MPIEXEC, TORCHRUN, needs_mpi, run

import hybrid
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation.chunks import choose_chunks, silence_rule
from jukebox_core.evaluation.estimates import draw_candidates
from jukebox_core.separation.settings import Settings
from scripts import evaluate

CODES = 64


@pytest.fixture(scope="module")
def flags(tiny_models, tiny_data):
    def of(output, *more):
        words = ["--models", tiny_models, "--data", tiny_data, "--output", output, "--threads", "1"]
        words += ["--device", "cpu", "--chunks", "3", "--chunk-codes", CODES, "--candidates", "4"]
        # Without nmf: of so short a chunk it is not the same twice, in one process either.
        words += ["--baselines", "mixture", "hpss", "codec", "irm"]
        return [str(word) for word in (*words, *more)]

    return of


@pytest.fixture(scope="module")
def straight(flags, tmp_path_factory):
    output = tmp_path_factory.mktemp("straight") / "results.json"
    assert evaluate.main(flags(output)) == 0
    return output


def comparable(path):
    """Results without what belongs to a run: times, machine, command, date."""
    results = json.loads(path.read_text())
    assert results.pop("seconds_per_chunk").keys() == {"lqvae", "lass", "hybrid", "hpss"}
    for name in ("machine", "command", "date"):
        del results["meta"][name]
    return results


def audio_of(path):
    return {each.name: each.read_bytes() for each in path.with_name("results_audio").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [TORCHRUN, pytest.param((MPIEXEC, "-n"), marks=needs_mpi)],
    ids=("torchrun", "mpiexec"),
)
def test_processes_score_what_one_does(flags, straight, tmp_path, launcher):
    output = tmp_path / "results.json"
    python = [] if launcher == TORCHRUN else [sys.executable]
    command = [*launcher, 2, *python, "-m", "scripts.evaluate"]
    part = run(*command, *flags(output, "--methods", "lass", "--parts-only"))
    assert part.returncode == 0 and part.stdout == "", part.stderr
    finished = (tmp_path / "results.json.parts" / "lass.json").stat().st_mtime_ns
    whole = run(*command, *flags(output))
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count(str(output)) == 1, "only the first process prints"
    assert comparable(output) == comparable(straight)
    assert audio_of(output) == audio_of(straight)
    assert json.loads(output.read_text())["meta"]["machine"]["processes"] == 2
    assert finished and {each.name for each in tmp_path.iterdir()} == {
        "results.json",
        "results_audio",
    }


def test_more_processes_than_chunks_and_an_error_of_one(flags, straight, tmp_path):
    output = tmp_path / "results.json"
    few = ("--chunks", "1", "--methods", "lqvae", "--parts-only")
    result = run(*TORCHRUN, 2, "-m", "scripts.evaluate", *flags(output, *few))
    assert result.returncode == 0, result.stderr
    few = ("--methods", "lqvae", "--split", "nowhere")
    result = run(*TORCHRUN, 2, "-m", "scripts.evaluate", *flags(tmp_path / "other.json", *few))
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode != 0 and len(errors) == 1 and "nowhere" in errors[0]


@pytest.mark.parametrize("sampler", ("particle", "ancestral", "beam"))
@pytest.mark.parametrize("shifts", (1, 2))
def test_candidates_do_not_depend_on_where_the_earlier_chunks_are_drawn(
    tiny_models, tiny_data, sampler, shifts
):
    separator = hybrid.load_separator(
        tiny_models, Settings(sampler=sampler, shifts=shifts), "cpu", candidates=4
    )
    manifest = load_manifest(tiny_data)
    length = CODES * separator.codec.config.hop
    chunks, _ = choose_chunks(manifest, "test", 4, length, 0, silence_rule(False)[1])
    together = list(draw_candidates(separator, chunks, 7, 2))
    apart = [
        each
        for first, last in ((0, 1), (1, 4), (4, 4))
        for each in draw_candidates(separator, chunks[first:last], 7, 2, before=first)
    ]
    for one, other in zip(together, apart, strict=True):
        assert one.chunk is other.chunk
        for name, audio in one.candidates.audio.items():
            assert torch.equal(audio, other.candidates.audio[name])
