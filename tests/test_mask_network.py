"""The last stage: the mask network, its candidates and its training."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import hybrid
from jukebox_core.audio.spectra import istft, stft
from jukebox_core.checkpoints import load_meta
from jukebox_core.datasets.batches import collate
from jukebox_core.datasets.crops import CropDataset
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.evaluation.mask_estimator import MaskEstimator
from jukebox_core.neural.candidates import KIND as CANDIDATES
from jukebox_core.neural.candidates import draw_items
from jukebox_core.neural.mask import MaskNetwork, load_mask_network, network_mask
from jukebox_core.neural.mask_objective import MaskNetworkObjective
from jukebox_core.presets import PRESETS
from jukebox_core.separation.mask import RatioMask
from jukebox_core.separation.samples import Candidates
from jukebox_core.separation.settings import Settings
from jukebox_core.tables import open_table
from scripts import train_mask_network
from tests.test_train_scripts import ROOT, error_of, same_weights

ALPHA = {"bass": 0.5, "drums": 0.25}
TINY = PRESETS["tiny"].mask
N_FFT, HOP = TINY.n_fft, TINY.hop


def make_network(trained=False, complex=True):
    torch.manual_seed(0)
    config = replace(PRESETS["tiny"].mask_network, complex=complex)
    network = MaskNetwork(config, MaskEstimator(TINY, ALPHA))
    if trained:
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.1)
    return network.eval().requires_grad_(False)


def make_candidates(batch=2, count=3, samples=2000):
    generator = torch.Generator().manual_seed(1)
    audio = {n: torch.randn(batch, count, samples, generator=generator) for n in ALPHA}
    mixture = torch.randn(batch, samples, generator=generator)
    weights = torch.rand(batch, count, generator=generator)
    return mixture, Candidates(audio, ALPHA), weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("frames", (256, 5))
def test_evidence_is_that_of_weighted_candidates_by_hand(frames, monkeypatch):
    monkeypatch.setattr("jukebox_core.neural.mask._FRAMES", frames)
    mixture, candidates, weights = make_candidates()
    spectrum, decoded, powers, spread = make_network().evidence(mixture, candidates, weights)
    torch.testing.assert_close(spectrum, stft(mixture, N_FFT, HOP))
    for b in range(2):
        each = [
            [(gain * stft(candidates.audio[n][b, i], N_FFT, HOP)).abs() ** 2]
            for i in range(3)
            for n, gain in ALPHA.items()
        ]
        each = torch.stack([x for (x,) in each]).unflatten(0, (3, 2))  # [N, S, F, frames]
        w = weights[b][:, None, None, None]
        torch.testing.assert_close(powers[b], (w * each).sum(0))
        for i, (n, gain) in enumerate(ALPHA.items()):
            mean = gain * (weights[b][:, None] * candidates.audio[n][b]).sum(0)
            expected = stft(mean, N_FFT, HOP)
            torch.testing.assert_close(decoded[b, i], expected, atol=1e-4, rtol=1e-4)
        share = each / each.sum(1, keepdim=True)
        mean = (w * share).sum(0)
        deviation = (w * (share - mean) ** 2).sum(0).sqrt()
        torch.testing.assert_close(spread[b], deviation, atol=1e-5, rtol=1e-4)


def test_without_a_correction_untrained_it_is_the_product_of_a_ratio_mask_and_the_estimators():
    mixture, candidates, weights = make_candidates()
    network = make_network(complex=False)
    torch.nn.init.normal_(network.estimator.outwards.bias)
    mask = network_mask(RatioMask(), network)
    assert (mask.n_fft, mask.hop) == (N_FFT, HOP)
    spectrum, _, powers, _ = network.evidence(mixture, candidates, weights)
    estimated = network.estimator(spectrum).transpose(0, 1)
    product = powers**0.6 * estimated**0.6
    expected = product / product.sum(1, keepdim=True)
    masks = torch.stack(list(mask.estimate(mixture, candidates, weights).values()), 1)
    torch.testing.assert_close(masks, expected, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("gate", (0.0, 0.3, 1.0))
def test_the_candidates_spectra_correct_the_masked_mixture(gate):
    """M_i Y + W (D_i - M_i sum D), for any channel of the mixture; the stems sum to it."""
    mixture, candidates, weights = make_candidates(count=1)
    mixture = 20 * mixture  # so that no bin is so quiet that its correction is bounded
    network, plain = make_network(), make_network(complex=False)
    network.gate.fill_(torch.logit(torch.tensor(gate)).clamp(-100, 100))
    stems = network_mask(RatioMask(), network)(mixture, candidates, weights)
    real = network_mask(RatioMask(), plain)(mixture, candidates, weights)
    spectrum, decoded, *_ = network.evidence(mixture, candidates, weights)
    total = sum(gain * stems[name] for name, gain in ALPHA.items())
    torch.testing.assert_close(total, mixture, atol=1e-3, rtol=1e-4)
    masks = plain(*network.evidence(mixture, candidates, weights))
    for i, (name, gain) in enumerate(ALPHA.items()):
        change = gate * (decoded[:, i] - masks[:, i] * decoded.sum(1))
        expected = real[name] + istft(change, N_FFT, HOP, mixture.shape[1]) / gain
        assert (stems[name] - expected).square().mean() < 1e-4 * expected.square().mean()


def test_the_true_sources_as_candidates_come_back():
    """With the gate open, the estimates are the candidates if these sum to the mixture."""
    _, candidates, weights = make_candidates(count=1)
    mixture = sum(gain * candidates.audio[name][:, 0] for name, gain in ALPHA.items())
    network = make_network()
    network.gate.fill_(100)
    stems = network_mask(RatioMask(), network)(mixture, candidates, weights)
    for name, stem in stems.items():
        truth = candidates.audio[name][:, 0]
        # But for bins where the sources cancel, whose correction is bounded.
        assert (stem - truth).square().mean() < 1e-3 * truth.square().mean()


def test_uncertainty_is_the_deviation_of_the_owner_under_the_real_masks():
    mixture, candidates, weights = make_candidates()
    network, plain = make_network(trained=True), make_network(trained=True, complex=False)
    plain.load_state_dict(network.state_dict())
    found = network_mask(RatioMask(), network).uncertainty(mixture, candidates, weights)
    mask = network_mask(RatioMask(), plain).estimate(mixture, candidates, weights)["bass"]
    owned = torch.stack([torch.zeros_like(mask), torch.ones_like(mask)])  # drums', bass's
    chance = torch.stack([1 - mask, mask])
    expected = (chance * (owned - mask).square()).sum(0).sqrt()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_complex_masks_apply_to_channels_and_other_rates():
    mixture, candidates, weights = make_candidates(batch=1)
    mask = network_mask(RatioMask(), make_network(trained=True))
    masks = {n: m[0] for n, m in mask.estimate(mixture, candidates, weights).items()}
    channels = torch.stack([mixture[0], 0.3 * mixture[0]])
    stems = mask.apply(channels, masks)
    for stem in stems.values():
        torch.testing.assert_close(stem[1], 0.3 * stem[0], atol=1e-5, rtol=1e-4)
    louder = torch.randn(2, 4354, generator=torch.Generator().manual_seed(3))
    other = mask.apply(louder, masks, 48_000 / 22_050)
    torch.testing.assert_close(sum(other.values()), louder, atol=1e-3, rtol=0)


def test_the_estimator_is_not_trained():
    network = make_network().requires_grad_(True)
    network.estimator.requires_grad_(False)
    named = MaskNetworkObjective(network, 3).named_parameters()
    trained = {name for name, p in named if p.requires_grad}
    assert trained and not any("estimator" in name for name in trained)
    fresh = MaskNetwork(PRESETS["tiny"].mask_network, MaskEstimator(TINY, ALPHA)).train()
    assert not fresh.estimator.training and not fresh.estimator.mean.requires_grad


def test_chunks_do_not_mix_and_loudness_does_not_matter():
    mixture, candidates, weights = make_candidates()
    mask = network_mask(RatioMask(), make_network(trained=True))
    together = mask.estimate(mixture, candidates, weights)
    alone = mask.estimate(mixture[1:], candidates.chunk(1), weights[1:])
    quiet = Candidates({n: 1e-3 * x for n, x in candidates.audio.items()}, ALPHA)
    quieter = mask.estimate(1e-3 * mixture, quiet, weights)
    for name, values in together.items():
        torch.testing.assert_close(values[1:], alone[name], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(values, quieter[name], atol=1e-3, rtol=1e-2)
        assert (values - 0.5).abs().mean() > 0.01


def test_items_are_drawn_once_and_every_epoch_has_all_of_them(
    tmp_path, tiny_data, tiny_neural_models
):
    separator = hybrid.load_neural_separator(tiny_neural_models, candidates=4)
    manifest = load_manifest(tiny_data)
    crops = CropDataset(manifest.split("train"), "sources", 1024, manifest.alpha)
    items = draw_items(separator, crops, 16, tmp_path, "one")
    assert items.rows == 2 * (1 + 4) and items.samples == 16 * 1024
    first = torch.stack([crops[i] for i in range(16)]).half().float()
    for epoch in (0, 1):
        own = torch.stack([items[16 * epoch + i] for i in range(16)])
        order = [int((first == x[:2]).all((1, 2)).nonzero()) for x in own]
        assert sorted(order) == list(range(16))
    mixtures = torch.einsum(
        "s,gst->gt", torch.tensor([0.5, 0.5]), torch.stack([*map(crops.__getitem__, range(8))])
    )
    drawn = separator.candidates(mixtures, torch.Generator().manual_seed(0))
    place = next(i for i in range(16) if torch.equal(items[i][:2], first[3]))
    torch.testing.assert_close(items[place][2:6], drawn.audio["bass"][3].half().float())
    torch.testing.assert_close(items[place][6:], drawn.audio["drums"][3].half().float())

    for process in (1, 0):
        divided = draw_items(separator, crops, 16, tmp_path / "two", "one", share=(process, 2))
        assert len([*(tmp_path / "two").iterdir()]) == 2 - process
    assert all(torch.equal(divided[i], items[i]) for i in range(16))

    draw_items(separator, crops, 8, tmp_path / "two", "another")
    with pytest.raises(ValueError, match="replaced by candidates of another training"):
        _ = [divided[i] for i in range(16)]

    separator.candidates = None  # all are there: nothing is drawn
    again = draw_items(separator, crops, 16, tmp_path, "one")
    assert torch.equal(again[5], items[5])
    with pytest.raises(TypeError):
        draw_items(separator, crops, 16, tmp_path, "another")


def test_the_loss_is_the_distortion_of_the_masked_mixture(tiny_data):
    network = make_network(trained=True)
    objective = MaskNetworkObjective(network, 3)
    torch.manual_seed(2)
    batch = collate([torch.randn(8, 1500) for _ in range(2)])
    out = objective(batch)
    rows = batch.unflatten(0, (8, 2))
    alpha = torch.tensor([0.5, 0.25])
    values = []
    for b in range(2):
        sources = rows[:2, b] * alpha[:, None]
        audio = {"bass": rows[2:5, b][None], "drums": rows[5:, b][None]}
        mixture = sources.sum(0)[None]
        evidence = network.evidence(mixture, Candidates(audio, ALPHA), torch.full((1, 3), 1 / 3))
        masks = network(*evidence)[0]
        target = stft(sources, N_FFT, HOP)
        error = (target - masks * evidence[0]).abs().square().sum((1, 2))
        floor = 1e-4 * evidence[0].abs().square().sum()
        values.append(10 * ((target.abs().square().sum((1, 2)) + floor) / (error + floor)).log10())
    expected = torch.stack(values).mean(0)
    assert out.loss.item() == pytest.approx(-expected.mean().item(), rel=1e-4)
    assert out.metrics["sdr_bass"].item() == pytest.approx(expected[0].item(), rel=1e-4)
    with pytest.raises(ValueError, match="7 rows are no multiple of the 8 of an item"):
        objective(torch.zeros(7, 1500))


def mask_flags(models, data, output, *more):
    paths = ("--models", str(models), "--data", str(data), "--output", str(output))
    return [*paths, "--preset", "tiny", "--device", "cpu", "--wandb", "disabled", *more]


def test_two_processes_draw_the_candidates_of_one(tmp_path, tiny_data, tiny_neural_models):
    more = ("--items", "24", "--train.steps", "1", "--threads", "1")
    one, two = tmp_path / "one", tmp_path / "two"
    assert train_mask_network.main(mask_flags(tiny_neural_models, tiny_data, one, *more)) == 0
    flags = mask_flags(tiny_neural_models, tiny_data, two, *more, "--devices", "2")
    command = [sys.executable, "-m", "scripts.train_mask_network", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    expected = {path.name: path.read_bytes() for path in (one / "candidates/train").iterdir()}
    found = {path.name: path.read_bytes() for path in (two / "candidates/train").iterdir()}
    assert len(expected) == 3 and found == expected


@pytest.mark.parametrize("rank", range(4))
def test_processes_divide_the_candidates_of_all_and_then_of_their_machine(
    tmp_path, tiny_data, monkeypatch, rank
):
    """Two machines: where they have no common disk, the second part draws what the first did not.

    The last looks for what a machine with fewer processes still lacks.
    """
    shares, errors = [], [None] * 4
    monkeypatch.setattr(
        train_mask_network, "draw_items", lambda *_, share, **__: shares.append(share)
    )
    monkeypatch.setattr(train_mask_network, "gather", lambda error, _: [error, *errors[1:]])
    first = {"is_global_zero": rank == 0}
    fabric = SimpleNamespace(global_rank=rank, world_size=4, local_rank=rank % 2, **first)
    run = SimpleNamespace(fabric=fabric, local_size=2)
    separator = SimpleNamespace(device=torch.device("cpu"))
    manifest = load_manifest(tiny_data)
    crops = CropDataset(manifest.split("train"), "sources", 1024, manifest.alpha)
    identity = {"drawn_with": {"augmentation": {"production": 0}}, "data": 0, "skip_silent": True}
    given = (run, separator, crops, 16, tmp_path, identity)
    train_mask_network._draw(*given)
    assert shares == [(rank, 4), (rank % 2, 2), (0, 1)]
    errors[2] = OSError("disk full")
    with pytest.raises(OSError, match="disk full"):  # no process waits for it
        train_mask_network._draw(*given)


def test_training_resumes_bit_for_bit_and_the_method_uses_it(
    tmp_path, tiny_data, tiny_neural_models, capsys
):
    models = tmp_path / "models"
    shutil.copytree(tiny_neural_models, models)
    whole, parts = models / "mask_network/hybrid-neural", tmp_path / "parts"
    assert train_mask_network.main(mask_flags(models, tiny_data, whole)) == 0
    assert train_mask_network.main(mask_flags(models, tiny_data, parts, "--train.steps", "3")) == 0
    assert train_mask_network.main(mask_flags(models, tiny_data, parts)) == 0
    assert same_weights(whole, parts)
    meta = load_meta(whole)
    assert meta["kind"] == "mask_network" and meta["drawn_with"]["method"] == "hybrid-neural"
    assert load_mask_network(whole).config == PRESETS["tiny"].mask_network
    # the candidates have the identity that they had before --augmentation.production existed
    assert meta["drawn_with"]["augmentation"].pop("production") == 0
    crop, seed = meta["train"]["crop"], meta["seed"]
    drawn = (meta["drawn_with"], meta["data"], meta["skip_silent"], "cpu", "train", crop, seed)
    digest = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()
    file, metadata = open_table(whole / "candidates/train/00000.safetensors", CANDIDATES)
    with file:
        assert metadata["identity"] == digest
    capsys.readouterr()
    other = mask_flags(models, tiny_data, parts, "--candidates", "8")
    assert "drawn_with.candidates is 4 there, now 8" in error_of(
        capsys, train_mask_network.main(other)
    )
    wrong = mask_flags(models, tiny_data, tmp_path / "new", "--method", "hybrid")
    message = error_of(capsys, train_mask_network.main(wrong))
    assert "expected one with the neural likelihood" in message

    mixture = 0.2 * torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    rate = PRESETS["tiny"].vqvae.sample_rate
    stems = {}
    for name, settings in (
        ("default", Settings()),
        ("with", Settings(mask_network=True)),
        ("without", Settings(mask_network=False)),
    ):
        separator = hybrid.load_neural_separator(models, settings, candidates=4)
        stems[name] = separator(mixture, rate, seed=1)
        assert ("network" in separator.mask.settings) == (name != "without")
        torch.testing.assert_close(sum(stems[name].values()), mixture, atol=1e-5, rtol=0)
    assert torch.equal(stems["default"]["bass"], stems["with"]["bass"])
    assert not torch.equal(stems["default"]["bass"], stems["without"]["bass"])
    with pytest.raises(FileNotFoundError):
        hybrid.load_neural_separator(tiny_neural_models, Settings(mask_network=True))
    path = whole / "meta.json"
    stored = path.read_text()
    path.write_text(json.dumps(json.loads(stored) | {"alpha": {"bass": 0.75, "drums": 0.25}}))
    with pytest.raises(ValueError, match="NetworkMask was trained on mixtures with gains"):
        hybrid.load_neural_separator(models, candidates=4)
    path.write_text(stored)
    shutil.rmtree(models / "linearisation")
    shutil.copytree(models / "reconstruction", models / "linearisation")
    with pytest.raises(ValueError, match="trained on the codes of another codec"):
        hybrid.load_neural_separator(models, Settings(gaussian=False), candidates=4)
