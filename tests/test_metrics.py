"""Scores against plain formulas, museval and the original systems' numbers."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jukebox_core.evaluation.metrics import framewise_sdr, sdr, si_sdr, si_sdri

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("LATENT_SEPARATION_SHARED", ROOT.parent / "shared"))


def signals(*shape, seed=0, noise=0.5):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(*shape, generator=generator)
    return reference, reference + noise * torch.randn(*shape, generator=generator)


def plain(reference, estimate):
    s, e = np.asarray(reference, np.float64), np.asarray(estimate, np.float64)
    return 10 * np.log10((s**2).sum() / ((s - e) ** 2).sum())


def plain_framewise(reference, estimate, window):
    count = max(1, len(reference) // window)
    frames = [slice(i * window, (i + 1) * window) for i in range(count)]
    return np.median([plain(reference[f], estimate[f]) for f in frames])


def test_sdr_is_the_plain_formula_over_all_leading_dimensions():
    reference, estimate = signals(2, 3, 500)
    scores = sdr(reference, estimate)
    assert scores.shape == (2, 3) and scores.dtype == torch.float64
    for index in np.ndindex(2, 3):
        assert scores[index].item() == pytest.approx(plain(reference[index], estimate[index]))


@pytest.mark.parametrize("length", [70, 100, 250, 400, 499, 999])
def test_framewise_sdr_is_the_median_of_complete_windows(length):
    reference, estimate = signals(length)
    score = framewise_sdr(reference, estimate, window=100).item()
    assert score == pytest.approx(plain_framewise(reference, estimate, 100))


def test_the_end_after_the_last_complete_window_does_not_count():
    reference, estimate = signals(250)
    worse = estimate.clone()
    worse[200:] = 100.0
    assert torch.equal(
        framewise_sdr(reference, estimate, 100), framewise_sdr(reference, worse, 100)
    )


def test_windows_that_are_silent_or_perfect_do_not_count():
    reference, estimate = signals(500)
    reference[:100] = 0
    estimate[100:200] = 0
    estimate[200:300] = reference[200:300]
    expected = np.mean([plain(reference[a : a + 100], estimate[a : a + 100]) for a in (300, 400)])
    assert framewise_sdr(reference, estimate, 100).item() == pytest.approx(expected)


def test_si_sdr_is_the_plain_formula():
    reference, estimate = signals(500)
    s, e = reference.double().numpy(), 0.3 * estimate.double().numpy()
    target = (e @ s) / (s @ s) * s
    expected = 10 * np.log10((target**2).sum() / ((target - e) ** 2).sum())
    assert si_sdr(reference, 0.3 * estimate).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("gain", [0.01, -3.0, 7.0])
def test_si_sdr_does_not_depend_on_the_scale(gain):
    reference, estimate = (x.double() for x in signals(4, 300))
    torch.testing.assert_close(si_sdr(reference, gain * estimate), si_sdr(reference, estimate))
    torch.testing.assert_close(si_sdr(gain * reference, estimate), si_sdr(reference, estimate))


def test_si_sdri_is_zero_for_the_mixture_and_the_difference_elsewhere():
    reference, estimate = signals(300)
    mixture = reference + signals(300, seed=1)[0]
    assert si_sdri(reference, mixture, mixture).item() == 0
    expected = si_sdr(reference, estimate) - si_sdr(reference, mixture)
    torch.testing.assert_close(si_sdri(reference, estimate, mixture), expected)


def test_one_reference_scores_many_candidates():
    reference, _ = signals(300)
    candidates = torch.stack([signals(300, noise=0.1 * (1 + i))[1] for i in range(64)])
    for score in (sdr, si_sdr, framewise_sdr):
        scores = score(reference, candidates)
        assert scores.shape == (64,)
        torch.testing.assert_close(scores[5], score(reference, candidates[5]))


@pytest.mark.parametrize("score", [sdr, si_sdr, framewise_sdr])
def test_a_silent_reference_has_no_score(score):
    reference, estimate = signals(2, 300)
    reference[0] = 0
    scores = score(reference, estimate)
    assert scores[0].isnan() and scores[1].isfinite()
    assert score(torch.zeros(300), torch.zeros(300)).isnan()


def test_perfect_and_zero_estimates():
    reference, _ = signals(300)
    assert sdr(reference, reference).item() == float("inf")
    assert sdr(reference, torch.zeros(300)).item() == 0.0
    assert si_sdr(reference, torch.zeros(300)).isnan()


def test_float64_inside():
    reference = torch.full((1_000_000,), 0.1)
    estimate = reference * (1 + 1e-4)
    exact = plain(reference.numpy(), estimate.numpy())
    assert sdr(reference, estimate).item() == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("score", [sdr, si_sdr, framewise_sdr])
def test_lengths_that_differ_are_refused(score):
    with pytest.raises(ValueError, match=r"expected \[\.\.\., T\] of one length"):
        score(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="no samples"):
        score(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="window is 0"):
        framewise_sdr(torch.ones(3), torch.ones(3), 0)


@pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")),
    reason="museval imports only where ffmpeg and ffprobe are installed",
)
@pytest.mark.parametrize("length", [30_000, 44_100, 65_536, 88_200, 190_000])
def test_framewise_sdr_equals_museval(length):
    museval = pytest.importorskip("museval")
    references, estimates = (x.double() for x in signals(2, length, seed=length))
    if length == 190_000:
        references[0, :44_100] = 0  # museval leaves the window out for both sources
        estimates[1, :44_100] = 0
    scores, *_ = museval.evaluate(
        references.unsqueeze(-1).numpy(), estimates.unsqueeze(-1).numpy(), 44_100, 44_100, mode="v4"
    )
    expected = np.nanmedian(np.where(np.isinf(scores), np.nan, scores), axis=1)
    np.testing.assert_allclose(framewise_sdr(references, estimates), expected, atol=1e-6)


@pytest.fixture(scope="module")
def original():
    """The original systems' scores: int16 signals and what their program made of them."""
    path = SHARED / "fixtures" / "sdr.npz"
    if not path.is_file():
        pytest.skip("no fixtures/sdr.npz: set LATENT_SEPARATION_SHARED to the folder above it")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def audio(array):
    return torch.from_numpy(array.astype(np.float32) / 32_768)


def test_framewise_sdr_equals_the_original_scores(original):
    cases = {name.split("/")[0] for name in original if name.endswith("/sdr")}
    assert cases
    for case in cases:
        reference, estimate = (audio(original[f"{case}/{x}_int16"]) for x in ("ref", "est"))
        score = framewise_sdr(reference, estimate)[0].item()
        assert score == pytest.approx(original[f"{case}/sdr"].item(), abs=1e-6)


def test_candidates_score_and_rank_as_in_the_original(original):
    truth, candidates = (audio(original[f"evaluate/{x}_int16"]) for x in ("gt", "cand"))
    for source in (0, 1):
        scores = framewise_sdr(truth[source], candidates[:, source])
        np.testing.assert_allclose(scores, original[f"evaluate/sdr_{source}"], atol=1e-5)
        order = original[f"evaluate/sdr_{source}_sorted_idx"]
        assert scores.argsort().tolist() == order.tolist()
