"""The supervised baseline: masks, layers, objective, training, checkpoint."""

from dataclasses import asdict

import pytest
import torch
from conftest import RATE, tone_and_noise
from torch import nn

from jukebox_core.checkpoints import save_model
from jukebox_core.config import MaskEstimatorConfig
from jukebox_core.evaluation.mask_estimator import MaskEstimator, load_mask_estimator
from jukebox_core.evaluation.mask_objective import MaskObjective
from jukebox_core.evaluation.metrics import sdr
from jukebox_core.presets import PRESETS

CONFIG = MaskEstimatorConfig(n_fft=256, hop=64, hidden=12, layers=2, dropout=0.0)
ALPHA = {"bass": 0.7, "drums": 0.3}


@pytest.fixture(scope="module")
def sources():
    """Two songs of 0.4 s: {source: [2, T]}."""
    songs = [tone_and_noise(number, int(0.4 * RATE)) for number in (1, 2)]
    return {name: torch.stack([song[name] for song in songs]) for name in ALPHA}


@pytest.fixture(scope="module")
def mixture(sources):
    return sum(ALPHA[name] * x for name, x in sources.items())


@pytest.fixture
def estimator(mixture):
    """With parameters that are all random, the standardisation's among them."""
    torch.manual_seed(0)
    estimator = MaskEstimator(CONFIG, ALPHA)
    estimator.standardise(mixture)
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return estimator.eval()


@pytest.mark.parametrize("length", [1, 500, 8_820])
def test_stems_sum_to_the_mixture(estimator, mixture, length):
    estimates = estimator.separate(mixture[:, :length])
    assert tuple(estimates) == tuple(ALPHA)
    total = sum(ALPHA[name] * x for name, x in estimates.items())
    torch.testing.assert_close(total, mixture[:, :length], atol=1e-5, rtol=0)


def direction(lstm, x, suffix):
    """One direction of one LSTM layer over [frames, width], by its equations."""
    w_x, w_h, b_x, b_h = (
        getattr(lstm, f"{kind}_{suffix}")
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    h = c = torch.zeros(w_h.shape[1])
    found = []
    for frame in x:
        i, f, g, o = (w_x @ frame + b_x + w_h @ h + b_h).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        found.append(h)
    return torch.stack(found)


def normalised(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return scaled * norm.weight + norm.bias


def masks_by_hand(net, spectrum):
    """[S, F, frames] of one mixture's spectrum [F, frames]."""
    magnitudes = spectrum.abs().T
    magnitudes = magnitudes / magnitudes.square().mean().sqrt()
    x = ((magnitudes + 1e-3).log() - net.mean) * net.scale
    first = normalised(x @ net.inwards.weight.T + net.inwards.bias, net.norm_in).tanh()
    deep = first
    for layer in range(net.config.layers):
        forwards = direction(net.lstm, deep, f"l{layer}")
        backwards = direction(net.lstm, deep.flip(0), f"l{layer}_reverse").flip(0)
        deep = torch.cat([forwards, backwards], -1)
    x = torch.cat([first, deep], -1) @ net.joined.weight.T + net.joined.bias
    x = normalised(x, net.norm_out).clamp_min(0) @ net.outwards.weight.T + net.outwards.bias
    bins = spectrum.shape[0]
    powers = torch.stack([x[:, s * bins : (s + 1) * bins].T for s in range(len(ALPHA))]).exp()
    return powers / powers.sum(0)


@torch.no_grad()
def test_the_masks_are_those_of_the_equations(estimator, mixture):
    spectra = estimator.spectrum(mixture)
    masks = estimator(spectra)
    for item, spectrum in enumerate(spectra):
        torch.testing.assert_close(masks[:, item], masks_by_hand(estimator, spectrum))


def test_loudness_has_no_part_in_the_masks(estimator, mixture):
    loud, soft = estimator.separate(mixture), estimator.separate(0.01 * mixture)
    for name, x in loud.items():
        torch.testing.assert_close(soft[name], 0.01 * x)


def test_standardised_features_have_mean_zero_and_deviation_one(mixture):
    estimator = MaskEstimator(CONFIG, ALPHA)
    estimator.standardise(mixture)
    features = estimator.features(estimator.spectrum(mixture))
    x = ((features - estimator.mean) * estimator.scale).flatten(0, 1)
    torch.testing.assert_close(x.mean(0), torch.zeros_like(x[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones_like(x[0]), atol=1e-4, rtol=0)


def test_the_loss_is_the_distortion_of_the_masked_spectra(estimator, sources, mixture):
    output = MaskObjective(estimator)(torch.cat(list(sources.values())))
    spectra = estimator.spectrum(mixture)
    masks = estimator(spectra)
    scores = {}
    for mask, (name, x) in zip(masks, sources.items(), strict=True):
        target = estimator.spectrum(ALPHA[name] * x)
        little = 1e-4 * spectra.abs().square().sum((1, 2))
        distortion = (target - mask * spectra).abs().square().sum((1, 2)) + little
        ratio = (target.abs().square().sum((1, 2)) + little) / distortion
        scores[name] = (10 * ratio.log10()).mean()
        assert output.metrics[f"sdr_{name}"].item() == pytest.approx(scores[name].item(), rel=1e-4)
    assert output.loss.item() == pytest.approx(-sum(scores.values()).item() / 2, rel=1e-4)


@pytest.mark.parametrize("silent", [("bass",), ("bass", "drums")])
def test_silence_has_a_finite_loss_and_gradient(estimator, sources, silent):
    rows = [x * (name not in silent) for name, x in sources.items()]
    MaskObjective(estimator)(torch.cat(rows)).loss.backward()
    assert all(p.grad.isfinite().all() for p in estimator.parameters())


def test_rows_must_be_of_all_sources(estimator):
    with pytest.raises(ValueError, match="3 crops are not of 2 sources each"):
        MaskObjective(estimator)(torch.randn(3, 1000))


def test_one_crop_is_learnt(sources, mixture):
    torch.manual_seed(0)
    estimator = MaskEstimator(CONFIG, ALPHA)
    estimator.standardise(mixture)
    objective = MaskObjective(estimator)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        objective(torch.cat(list(sources.values()))).loss.backward()
        nn.utils.clip_grad_norm_(estimator.parameters(), 1.0)
        optimizer.step()
    for name, x in estimator.eval().separate(mixture).items():
        assert (sdr(sources[name], x) > sdr(sources[name], mixture) + 8).all(), name


def save(folder, estimator, **changes):
    meta = {"kind": "mask_estimator", "config": asdict(CONFIG), "alpha": ALPHA}
    save_model(folder, estimator, meta | changes)


def test_a_checkpoint_comes_back(estimator, mixture, tmp_path):
    save(tmp_path, estimator)
    loaded = load_mask_estimator(tmp_path)
    assert loaded.config == CONFIG and loaded.alpha == ALPHA and not loaded.training
    for name, x in estimator.separate(mixture).items():
        assert torch.equal(loaded.separate(mixture)[name], x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "prior"}, "is a run of kind 'prior', expected 'mask_estimator'"),
        ({"alpha": None}, "names no sources: alpha is None"),
        ({"alpha": {**ALPHA, "piano": 1.0}}, "tensor outwards.bias is"),
        ({"config": asdict(CONFIG) | {"layers": 3}}, "misses the tensor lstm.bias_hh_l2"),
        ({"config": asdict(CONFIG) | {"colour": 1}}, "has no field colour"),
        (
            {"config": asdict(CONFIG) | {"hop": 100}},
            "n_fft 256 is not an even multiple of hop 100",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(estimator, tmp_path, changes, message):
    save(tmp_path, estimator, **changes)
    with pytest.raises(ValueError, match=message):
        load_mask_estimator(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("hidden", 15), ("layers", 0), ("n_fft", 1000), ("dropout", 1.0)]
)
def test_what_cannot_be_built_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}|{field} {value} is not"):
        MaskEstimatorConfig(**{field: value})


@pytest.mark.parametrize("name", PRESETS)
def test_number_of_parameters(name):
    config = PRESETS[name].mask
    with torch.device("meta"):
        built = MaskEstimator(config, ALPHA)
    f, h = config.n_fft // 2 + 1, config.hidden
    lstm = config.layers * 2 * 4 * (h // 2) * (h + h // 2 + 2)
    expected = 2 * f + (f + 1) * h + 2 * h + lstm + (2 * h + 1) * h + 2 * h + (h + 1) * 2 * f
    assert sum(p.numel() for p in built.parameters()) == expected
