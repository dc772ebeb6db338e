"""The codec's loss by upstream's hyper-parameters: read, computed, converted, written back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_by_hand import terms, total
from upstream_files import CODEC_HPS, codec_tensors, convert, refused, save_checkpoint

from jukebox_core.checkpoints import load_meta, save_meta
from jukebox_core.config import Bandwidths, LossConfig, from_dict
from jukebox_core.training.tracking import read_metrics
from jukebox_core.upstream.checkpoints import read_checkpoint
from jukebox_core.upstream.loss import bandwidths_of, loss_config, loss_hps
from jukebox_core.vqvae.losses import reconstruction_terms
from scripts.train_vqvae import main as train_vqvae

LOSS_HPS = {
    "loss_fn": "lmix",
    "lmix_l1": 0.3,
    "lmix_l2": 0.7,
    "lmix_linf": 0.05,
    "linf_k": 37,
    "commit": 0.2,
    "spectral": 0.6,
    "multispectral": 0.4,
    "n_fft": 256,
    "hop_length": 70,
    "window_size": 200,
    "multispec_loss_n_fft": (128, 64),
    "multispec_loss_hop_length": (30, 16),
    "multispec_loss_window_size": (100, 64),
    "use_nonrelative_specloss": False,
    "bandwidth": {"l1": 0.2, "l2": 0.05, "spec": 3.0},
}
VARIANTS = [
    {},
    {"use_nonrelative_specloss": True},
    {"loss_fn": "l1"},
    {"loss_fn": "l2"},
    {"loss_fn": "linf"},
    {"linf_k": 5000, "lmix_l1": 0.0},
    {"multispec_loss_n_fft": (64,), "multispec_loss_hop_length": (16,)}
    | {"multispec_loss_window_size": (32,), "n_fft": 100, "hop_length": 25, "window_size": 77},
]


def audio(seed=0, batch=3, length=700):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(batch, length, generator=generator)


@pytest.mark.parametrize("change", VARIANTS)
def test_terms_equal_the_formulas(change):
    hps = LOSS_HPS | change
    target, estimate = audio(0), audio(1)
    found = reconstruction_terms(target, estimate, loss_config(hps), bandwidths_of(hps))
    wanted = terms(target, estimate, hps)
    for name, value in found.items():
        assert value.item() == pytest.approx(wanted[name].item(), rel=2e-6), name


@pytest.mark.parametrize("change", VARIANTS)
def test_gradients_equal_the_slopes_of_the_formulas(change):
    """Central differences in float64 along random directions."""
    hps = LOSS_HPS | change
    target, estimate = audio(0), audio(1).requires_grad_()
    found = reconstruction_terms(target, estimate, loss_config(hps), bandwidths_of(hps))
    total([found], hps).backward()
    for seed in range(2, 6):
        direction, step = audio(seed).double(), 1e-6
        sides = [
            total([terms(target, estimate.detach() + sign * step * direction, hps)], hps)
            for sign in (1, -1)
        ]
        slope = ((sides[0] - sides[1]) / (2 * step)).item()
        ours = (estimate.grad.double() * direction).sum().item()
        assert ours == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_a_silent_target_is_as_loud_as_the_least_norm():
    hps = LOSS_HPS | {"linf_k": 10}
    target = torch.zeros(2, 700)
    target[1] = audio()[0]
    estimate = 1e-3 * audio(1, 2)
    loss, bandwidths = loss_config(hps), bandwidths_of(hps)
    found = reconstruction_terms(target, estimate.requires_grad_(), loss, bandwidths)
    wanted = terms(target, estimate, hps)["spectral_loss"]
    assert found["spectral_loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
    same = reconstruction_terms(target, target.clone().requires_grad_(), loss, bandwidths)
    assert same["spectral_loss"].item() == 0
    (same["spectral_loss"] + found["spectral_loss"]).backward()
    assert estimate.grad.isfinite().all()


def test_hps_without_a_loss_say_none():
    assert loss_config({"sr": 22_050, "width": 32, "commit": None}) is None
    assert bandwidths_of({"bandwidth": None}) is None
    assert bandwidths_of({}) is None


def test_missing_values_get_upstreams_defaults():
    assert loss_config({"loss_fn": "lmix"}) == LossConfig()
    assert loss_config({"use_nonrelative_specloss": False}) == LossConfig(relative_spectral=True)
    assert loss_config({"loss_fn": "l1"}) == LossConfig(lmix_l1=1.0, lmix_l2=0.0, lmix_linf=0.0)


@given(
    st.builds(
        LossConfig,
        commit=st.floats(0, 10),
        spectral=st.floats(0, 10),
        multispectral=st.floats(0, 10),
        lmix_l1=st.floats(0, 10),
        lmix_l2=st.floats(0, 10),
        lmix_linf=st.floats(0, 10),
        linf_k=st.integers(1, 4096),
        spectral_stft=st.sampled_from([(2048, 256, 1536), (100, 25, 77)]),
        multispectral_stfts=st.sampled_from([((64, 16, 32),), ((512, 50, 240), (256, 64, 256))]),
        relative_spectral=st.booleans(),
    )
)
def test_hps_there_and_back(config):
    bandwidths = Bandwidths(0.1, 0.2, 3.0)
    hps = loss_hps(config, bandwidths)
    assert loss_config(hps) == config and bandwidths_of(hps) == bandwidths


def test_a_converted_codec_keeps_its_loss(tmp_path):
    hps = CODEC_HPS | LOSS_HPS | {"loss_fn": "linf"}
    path = save_checkpoint(tmp_path / "c.pth.tar", codec_tensors(), hps)
    assert convert("codec", path, tmp_path / "codec") == 0
    meta = load_meta(tmp_path / "codec")
    assert from_dict(LossConfig, meta["loss"]) == loss_config(hps)
    assert meta["loss"]["relative_spectral"] is True
    assert [meta["loss"][f"lmix_{name}"] for name in ("l1", "l2", "linf")] == [0, 0, 1]
    assert meta["bandwidths"] == {"l1": 0.2, "l2": 0.05, "spec": 3.0}
    assert convert("codec", tmp_path / "codec", tmp_path / "b.pth.tar", "--back") == 0
    assert read_checkpoint(tmp_path / "b.pth.tar").hps.items() >= {"loss_fn": "linf"}.items()


def test_a_trained_codecs_loss_is_exported(tmp_path):
    path = save_checkpoint(tmp_path / "c.pth.tar", codec_tensors(), CODEC_HPS | LOSS_HPS)
    assert convert("codec", path, tmp_path / "codec") == 0
    meta = load_meta(tmp_path / "codec")
    del meta["upstream"], meta["format"]
    del meta["loss"]["relative_spectral"]  # as of a run from before there was the field
    save_meta(tmp_path / "codec", meta)
    assert convert("codec", tmp_path / "codec", tmp_path / "b.pth.tar", "--back") == 0
    hps = torch.load(tmp_path / "b.pth.tar", weights_only=True)["hps"]
    wanted = LOSS_HPS | {"use_nonrelative_specloss": True}
    assert {name: hps[name] for name in wanted} == wanted


def test_a_codec_trains_with_the_relative_loss_and_goes_on(tmp_path, tiny_data):
    flags = ["--objective", "reconstruction", "--preset", "tiny", "--data", str(tiny_data)]
    flags += ["--output", str(tmp_path / "run"), "--device", "cpu", "--wandb", "disabled"]
    flags += ["--loss.relative-spectral", "--loss.spectral", "0.5", "--loss.lmix-l1", "0.2"]
    flags += ["--loss.spectral-stft", "512", "64", "400", "--train.steps"]
    assert train_vqvae([*flags, "1"]) == 0
    assert train_vqvae([*flags, "2"]) == 0
    metrics = read_metrics(tmp_path / "run" / "metrics.csv")
    logged = {row.metric: row.value for row in metrics if row.split == "validation"}
    # Of one level: the spectral loss is the metric that was logged all along, not a bandwidth's.
    assert logged["spectral_loss_l1"] == pytest.approx(logged["spectral_convergence"])
    assert convert("codec", tmp_path / "run", tmp_path / "b.pth.tar", "--back") == 0
    hps = read_checkpoint(tmp_path / "b.pth.tar").hps
    assert (hps["use_nonrelative_specloss"], hps["spectral"], hps["n_fft"]) == (False, 0.5, 512)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_fn": "huber"}, "loss_fn is 'huber', expected one of l1, l2, linf, lmix"),
        ({"multispec_loss_n_fft": (64,)}, "multispec_loss_n_fft has 1"),
        ({"bandwidth": {"l1": 0.1}}, "bandwidth is {'l1': 0.1}"),
        ({"bandwidth": "loud"}, "bandwidth is 'loud'"),
        ({"bandwidth": {"l1": 0.1, "l2": 0.0, "spec": 1.0}}, "l2"),
    ],
)
def test_losses_that_there_are_not_are_refused(tmp_path, capsys, change, message):
    path = save_checkpoint(tmp_path / "c", codec_tensors(), CODEC_HPS | LOSS_HPS | change)
    assert message in refused(capsys, "codec", path, tmp_path / "run")
