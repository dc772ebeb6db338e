"""Separation of a stream: in memory for a few windows, and when memory runs out."""

import pytest
import torch

import hybrid
import lass
from jukebox_core import audio, machine
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.machine import is_out_of_memory
from jukebox_core.presets import PRESETS
from jukebox_core.prior.joint import as_joint
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.separation import memory
from jukebox_core.separation.ancestral import AncestralSampler
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.memory import TooLarge, windows_that_fit
from jukebox_core.separation.samples import JointSamples
from jukebox_core.separation.separator import Separator
from jukebox_core.separation.stream import Steps, Tape, cut
from jukebox_core.separation.uncertainty import Uncertainty
from jukebox_core.separation.windows import Layout
from jukebox_core.vqvae.model import VQVAE
from lqvae import LatentGaussianLikelihood, code_sums

HOP = PRESETS["tiny"].vqvae.hop
RATE = 22_050


class Spy:
    """Random codes; remembers what it was called with, and can run out of memory."""

    def __init__(self, most=1 << 30, independent=False, error=torch.cuda.OutOfMemoryError):
        self.most, self.independent, self.error = most, independent, error
        self.batches = []

    def __call__(self, priors, likelihood, codes, n, generator, progress=None, factors=None):
        batch, steps = codes.shape
        shape = (batch, steps, 2, n)
        numbers = torch.randint(likelihood.n_codes, shape, generator=generator)  # window by window
        if batch * n > self.most:  # after it took random numbers
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        for step in range(steps):
            if progress:
                progress(step + 1, steps)
        first, second = numbers.permute(2, 0, 3, 1)
        zeros = torch.zeros(batch, n)
        drawn = {"bass": first, "drums": second}
        self.batches.append(batch)
        return JointSamples(drawn, dict.fromkeys(drawn, zeros), zeros)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    preset = PRESETS["tiny"]
    codec = VQVAE(preset.vqvae).eval()
    codec.bottleneck(codec.levels[-1]).codebook.normal_(std=0.3)
    priors = {
        name: AutoregressivePrior(preset.prior, codec.codebook).eval() for name in ("bass", "drums")
    }
    return codec, priors, LatentGaussianLikelihood(codec.codebook, code_sums(codec.codebook))


def make(parts, sampler=None, **options):
    options = {"candidates": 4, "window": 64, "overlap": 8} | options
    return Separator(*parts, sampler=sampler or Spy(), **options)


def mixture(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def same(first, second):
    assert set(first) == set(second)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("channels", "rate"), [(1, RATE), (2, 44_100), (2, 48_000)])
@pytest.mark.parametrize("size", [999, 20_000, 1 << 20])
@pytest.mark.parametrize("refine", [True, False])
def test_a_stream_gives_the_stems_of_the_whole(parts, channels, rate, size, refine):
    separator = make(parts)
    x = mixture(channels, 45_001)
    whole = separator(x, rate, seed=4, refine=refine, batch=2)
    stream = separator.stream(x.split(size, 1), rate, channels, seed=4, refine=refine, batch=2)
    blocks = list(stream)
    assert same({n: torch.cat([b[n] for b in blocks], 1) for n in whole}, whole)
    assert len(blocks) > 1


def test_a_stream_reads_no_further_than_it_must(parts):
    """Of a song without an end, a few windows are held; stems come with a bounded delay."""
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1_000
            yield mixture(1, 1_000)

    given = 0
    stream = make(parts).stream(endless(), RATE, 1, batch=2)
    for _ in range(20):
        given += next(stream)["bass"].shape[1]
        assert 0 < read - given <= 4 * 64 * HOP
    assert given == 40 * (64 - 8) * HOP


def test_a_stream_refuses_what_it_cannot_take(parts):
    separator = make(parts)
    with pytest.raises(ValueError, match="no samples"):
        next(separator.stream([], RATE, 1))
    with pytest.raises(ValueError, match=r"\(5,\), expected \[1, t\]"):
        next(separator.stream([torch.zeros(5)], RATE, 1))
    with pytest.raises(ValueError, match="NaN or infinite"):
        next(separator.stream([torch.full((1, 5), torch.inf)], RATE, 1))
    with pytest.raises(ValueError, match="rate is 0"):
        separator.stream([], 0, 1)
    with pytest.raises(ValueError, match="batch is 0"):
        separator.stream([], RATE, 1, batch=0)


def test_every_sample_is_covered_where_the_resampler_rounds_down(parts):
    x = mixture(1, 64 * HOP * 3 + 1)  # a sample more than a whole number of codes, at three times
    stems = make(parts)(x, 3 * RATE)
    torch.testing.assert_close(sum(stems.values()), x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize("most", [4, 9, 12])
def test_out_of_memory_halves_the_batch_and_changes_nothing(parts, error, most):
    x = mixture(2, 8 * 64 * HOP)
    expected = make(parts)(x, RATE, seed=3, batch=1)
    spy = Spy(most, error=error)
    seen = []
    stems = make(parts, spy)(x, RATE, seed=3, batch=8, progress=lambda *step: seen.append(step))
    assert same(stems, expected)
    assert max(spy.batches) <= most // 4 and seen[-1][0] == seen[-1][1]
    if most == 12:
        assert spy.batches == [2, 2, 2, 2, 1]  # not 8, not 4; what does not fit is not retried


class MaskThatRunsOutOfMemory(RatioMask):
    """Fails once, at a window in the middle of a group."""

    calls = 0

    def estimate(self, mixture, candidates, weights):
        type(self).calls += 1
        if type(self).calls == 3:
            raise MemoryError
        return super().estimate(mixture, candidates, weights)


def test_memory_that_runs_out_after_the_sampling_changes_nothing(parts):
    x = mixture(1, 4 * 64 * HOP)
    found = []
    for mask, batch in (
        (RatioMask(n_fft=512, hop=128), 1),
        (MaskThatRunsOutOfMemory(n_fft=512, hop=128), 4),
    ):
        uncertainty = Uncertainty()
        stems = make(parts, mask=mask)(x, RATE, seed=3, batch=batch, uncertainty=uncertainty)
        found.append((stems, uncertainty.values))
    (expected, values), (stems, repeated) = found
    assert MaskThatRunsOutOfMemory.calls > 4
    assert same(stems, expected) and torch.equal(values, repeated)


def test_shifts_are_in_memory_and_leave_the_batch_out_of_the_result(parts, monkeypatch):
    x = mixture(2, 8 * 64 * HOP)
    expected = make(parts, shifts=2)(x, RATE, seed=3, batch=1)
    spy = Spy(most=8)
    assert same(make(parts, spy, shifts=2)(x, RATE, seed=3, batch=8), expected)
    assert max(spy.batches) == 2 * 2  # two windows at two shifts, two candidates each
    with pytest.raises(TooLarge, match="4 candidates of one window"):
        make(parts, Spy(most=2, independent=False), shifts=2)(x, RATE)
    groups = Spy(most=2, independent=True)
    make(parts, groups, shifts=2)(mixture(64 * HOP), RATE)
    assert groups.batches == [2, 2]  # a candidate of either shift, twice
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 22)
    assert make(parts, shifts=4).fitting_batch() < make(parts).fitting_batch()


@pytest.mark.parametrize("load", (lass.load_separator, hybrid.load_neural_separator))
def test_no_bit_of_the_stems_depends_on_the_batch(tiny_neural_models, tiny_data, load):
    """Codes that are nearly ties fall either way by the last digit of a convolution."""
    separator = load(tiny_neural_models, device="cpu", candidates=4)
    song, rate = audio.load(load_manifest(tiny_data).split("test")[0].mixture)
    song = song[:, :rate]
    expected = separator(song, rate, seed=3, batch=32)
    assert same(separator(song, rate, seed=3, batch=3), expected)


def test_one_window_that_does_not_fit_is_drawn_in_groups(parts):
    x = mixture(3 * 64 * HOP)
    spy = Spy(1, independent=True)
    stems = make(parts, spy)(x, RATE, batch=2)
    assert spy.batches == [1] * 4 * 4 and all(s.isfinite().all() for s in stems.values())
    torch.testing.assert_close(sum(stems.values()), x, atol=1e-4, rtol=0)
    for sampler, said in ((Spy(1), "4 candidates"), (Spy(0, independent=True), "4 candidates")):
        with pytest.raises(
            TooLarge, match=f"{said} of one window of 64 .* lower the number of candidates"
        ):
            make(parts, sampler)(x, RATE, batch=2)


def test_other_errors_are_not_taken_for_a_lack_of_memory(parts):
    class Broken(Spy):
        def __call__(self, *args):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        make(parts, Broken())(mixture(1000), RATE)
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (...)"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when ..."))


def test_candidates_in_groups_are_all_there(parts):
    separator = make(parts, AncestralSampler(), candidates=5)
    found = separator.candidates(mixture(1, 64 * HOP), torch.Generator().manual_seed(0), parts=2)
    assert found.samples.codes["bass"].shape == (1, 5, 64)
    assert found.samples.log_prior["drums"].shape == (1, 5)
    assert found.samples.log_likelihood.shape == (1, 5)
    assert found.audio["bass"].shape == (1, 5, 64 * HOP)


def test_the_automatic_batch_fits_the_memory(parts, monkeypatch):
    joint, cpu = as_joint(parts[1]), torch.device("cpu")
    per_window = 4 * joint.new_cache(1, 64).nbytes()

    def fit(free, candidates=4, **options):
        monkeypatch.setattr(memory, "free_bytes", lambda device: free)
        return windows_that_fit(joint, candidates, 64, 64 * HOP, cpu, **options)

    most = memory.CPU_SEQUENCES
    assert fit(1 << 40) == -(-most // 4) and fit(1 << 40, candidates=5) == -(-most // 5)
    assert fit(1 << 40, candidates=most) == 1 and fit(0) == 1
    some = fit(20 * per_window)
    assert 1 < some < 10 and fit(20 * per_window, processes=some) == 1
    assert make(parts).fitting_batch() >= 1


def test_every_source_and_partial_sum_counts(parts, monkeypatch):
    """Of four sources, twice the caches and the audio of two, and the messages of two sums."""
    prior, cpu = next(iter(parts[1].values())), torch.device("cpu")
    free = 1 << 32

    def needed(sources):
        joint = as_joint({str(number): prior for number in range(sources)})
        monkeypatch.setattr(memory, "CPU_SEQUENCES", 1 << 60)
        monkeypatch.setattr(memory, "free_bytes", lambda device: free)
        return memory.SHARE * free / windows_that_fit(joint, 1, 64, 64 * HOP, cpu)

    k = prior.n_codes
    tables = 4 * 3 * k**2
    two, four = (needed(n) - tables for n in (2, 4))
    assert four - 2 * two == pytest.approx(2 * 8 * 8 * k, rel=0.02)


def test_memory_of_a_container(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert machine._container_bytes(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._container_bytes(tmp_path) > 1 << 60


def test_tape_and_steps():
    tape = Tape((2,))
    tape.append(torch.arange(10.0).repeat(2, 1))
    tape.forget(4)
    assert tape.length == 10
    assert tape.cut(4, 12).tolist() == [[4, 5, 6, 7, 8, 9, 0, 0]] * 2
    tape.forget(99)
    assert tape.length == 10
    seen = []
    layout = Layout(160, 0, 16)
    steps = Steps(lambda *x: seen.append(x), 16, layout)  # of unknown length
    steps.during(2)(5, 10)
    steps.finished(2)
    steps.during(1)(10, 10)
    assert seen == [(10, 20), (30, 30)]
    Steps(lambda *x: seen.append(x), 16, layout, 400).during(1)(1, 10)
    Steps(lambda *x: seen.append(x), 16, layout, 33).during(1)(1, 3)
    assert seen[2:] == [(1, 30), (1, 3)]
    assert Steps(None, 16, layout).during(1) is None


def test_pieces_are_cut_at_both_rates():
    x = torch.arange(1000.0).repeat(2, 1)
    found = list(cut(x.split(130, 1), 200, 100, 2, Layout(128, 16, 16)))
    assert [p.window.start for p in found] == [0, 112, 224, 336, 384]
    for piece in found:
        start, stop = 2 * piece.window.start, 2 * piece.window.stop
        known = torch.nn.functional.pad(x, (0, 200))[:, start:stop]
        assert torch.equal(piece.channels, known) and piece.mono.shape == (128,)
    assert [p.settled for p in found] == [224, 448, 672, 768, 1000]
