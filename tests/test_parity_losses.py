"""scripts.check_parity on made-up fixtures of the loss: it hard-codes nothing of the recorded set.

The fixtures are computed by the formulas of `loss_by_hand`, at other sizes and with other options
than those that were recorded.
"""

import json

import numpy as np
import pytest
import torch
from loss_by_hand import terms, total
from parity_fixtures import SHARED, needs_fixtures, one_thread, upstream_steps  # noqa: F401

from jukebox_core.config import Bandwidths, LossConfig, VQVAEConfig
from jukebox_core.upstream.layout import build_codec, codec_hps, codec_names, codec_tensors
from jukebox_core.upstream.loss import loss_config
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ReconstructionObjective
from scripts.check_parity import main, run
from scripts.check_parity.fixtures import Fixture
from scripts.check_parity.seeds import drawn_codec

LOSS = {
    "loss_fn": "lmix",
    "lmix_l1": 0.4,
    "lmix_l2": 0.8,
    "lmix_linf": 0.03,
    "linf_k": 50,
    "use_nonrelative_specloss": False,
    "bandwidth": {"l1": 0.3, "l2": 0.07, "spec": 11.0},
    "multispec_loss_n_fft": [128, 64],
    "multispec_loss_hop_length": [30, 16],
    "multispec_loss_window_size": [100, 64],
}
STFT = {"n_fft": 200, "hop_length": 45, "win_length": 130}
WEIGHTS = {"commit": 0.3, "spectral": 0.5, "multispectral": 0.7}


CONFIG = VQVAEConfig(
    levels=2,
    downs_t=(1, 2),
    strides_t=(4, 2),
    l_bins=12,
    emb_width=6,
    l_mu=0.97,
    width=4,
    depth=3,
    m_conv=0.5,
    dilation_growth_rate=2,
    dilation_cycle=2,
    reverse_decoder_dilation=False,
    multipliers=(1, 2),
)


def upstream_codec():
    """{upstream name: tensor} of a codec, its codebooks near its latents."""
    torch.manual_seed(5)
    codec = VQVAE(CONFIG)
    for level in codec.levels:
        latents = codec.latents(0.2 * torch.randn(1, 480), level)[0].detach().T
        codec.bottleneck(level).codebook.copy_(latents[: CONFIG.l_bins])
    state = codec.state_dict()
    return {upstream: state[name].clone() for name, upstream in codec_names(CONFIG).items()}


def make(folder, kind, loss, weights=WEIGHTS, stft=STFT, alpha=(0.7, 0.3), crop=480):
    """Write NAME.npz and NAME.json of the objective `kind`."""
    tensors, config = upstream_codec(), CONFIG
    generator = torch.Generator().manual_seed(3)
    audio = 0.2 * torch.randn(3 if kind == "vqvae_loss" else 6, crop, generator=generator)
    stored = codec_hps(config) | weights | {"mu": config.l_mu}
    info = {"config": {name: v for name, v in stored.items() if name not in ("sr", "l_mu")}}
    info |= {"loss_config": loss, "spectral_stft": stft, "alpha": list(alpha)}
    names = codec_names(config)
    info["param_names_for_grad_norms"] = [o for o in names.values() if not o.endswith(".k")]
    hps = weights | loss | {"window_size": stft["win_length"]} | stft
    arrays = {f"sd/{name}": t for name, t in tensors.items()} | {"in/x": audio.unsqueeze(-1)}
    for mode in ("eval", "train"):
        codec = build_codec(codec_tensors(tensors, config, 40.0), config)
        codec.requires_grad_(True).train(mode == "train")
        for level in codec.levels if mode == "train" else ():
            bottleneck = codec.bottleneck(level)
            arrays[f"in/train/k_sum_level{level}"] = bottleneck.ema_sum.clone()
            arrays[f"in/train/k_elem_level{level}"] = bottleneck.ema_count.clone()
        outputs = codec(audio)
        levels = {level: terms(audio, out.audio, hps) for level, out in outputs.items()}
        commit = sum(out.quantised.commit for out in outputs.values())
        value = total(levels.values(), hps) + weights["commit"] * commit
        metrics = {"commit_loss": commit}
        for name in ("recons_loss", "spectral_loss", "multispectral_loss"):
            metrics |= {f"{name}_l{level + 1}": found[name] for level, found in levels.items()}
            metrics[name] = sum(found[name] for found in levels.values())
        for name in ("spectral_convergence", "l1_loss", "l2_loss", "linf_loss"):
            metrics[name] = levels[0][name]
        if kind == "lqvae_loss":
            added, more = linearisation(codec, audio, outputs, alpha, weights["commit"])
            value = value + added
            metrics |= more | {"commit_loss": commit + more["commit_loss_sum"]}
            metrics["commit_loss_standard"] = commit
        value.backward()
        info[f"{mode}_loss"] = value.item()
        info[f"{mode}_metrics"] = {name: v.item() for name, v in metrics.items()}
        arrays[f"out/{mode}/x_out"] = outputs[0].audio.detach().unsqueeze(-1)
        gradients = {names[n]: p.grad for n, p in codec.named_parameters()}
        arrays[f"out/{mode}/grad_norms"] = [
            gradients[name].norm().item() for name in info["param_names_for_grad_norms"]
        ]
        arrays |= {f"out/{mode}/grad/{name}": g for name, g in gradients.items()}
    np.savez(
        folder / f"{kind}.npz",
        **{k: np.asarray(v.detach() if hasattr(v, "detach") else v) for k, v in arrays.items()},
    )
    (folder / f"{kind}.json").write_text(json.dumps(info))


def linearisation(codec, audio, outputs, alpha, commit):
    """What the LQ-VAE adds, with the metrics."""
    first, second = audio.chunk(2)
    value, metrics, commits = 0.0, {}, 0.0
    for level, out in outputs.items():
        bottleneck = codec.bottleneck(level)
        q_a, q_b = out.quantised.latents.chunk(2)
        summed = bottleneck(alpha[0] * q_a + alpha[1] * q_b)
        encoded = bottleneck(codec.latents(alpha[0] * first + alpha[1] * second, level))
        distance = (summed.latents - encoded.latents).square().mean()
        metrics[f"latent_loss_l{level + 1}"] = distance
        commits = commits + summed.commit
        value = value + distance + commit * summed.commit
    return value, metrics | {
        "latent_loss": metrics["latent_loss_l1"],
        "commit_loss_sum": commits,
    }


OPTIONS = [
    {},
    {"use_nonrelative_specloss": True},
    {"loss_fn": "l1"},
    {"loss_fn": "l2", "linf_k": 9999},
    {"loss_fn": "linf", "linf_k": 7},
]


@pytest.mark.parametrize("change", OPTIONS)
@pytest.mark.parametrize("kind", ["vqvae_loss", "lqvae_loss"])
def test_other_losses_are_read_from_the_side_car(tmp_path, kind, change):
    make(tmp_path, kind, LOSS | change)
    rows = run(tmp_path)
    assert len(rows) >= 10 and [row for row in rows if not row.ok] == []


def test_the_loss_without_weight_is_compared_as_well(tmp_path, capsys):
    make(tmp_path, "vqvae_loss", LOSS, WEIGHTS | {"spectral": 0.0})
    assert main(["--fixtures", str(tmp_path)]) == 0
    info = json.loads((tmp_path / "vqvae_loss.json").read_text())
    info["train_metrics"]["spectral_loss_l2"] *= 1.001
    (tmp_path / "vqvae_loss.json").write_text(json.dumps(info))
    capsys.readouterr()
    assert main(["--fixtures", str(tmp_path)]) == 1
    assert "vqvae_loss ReconstructionObjective (train) metrics" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"linf_k": 51},
        {"lmix_l1": 0.41},
        {"use_nonrelative_specloss": True},
        {"multispec_loss_hop_length": [29, 16]},
        {"bandwidth": {"l1": 0.3, "l2": 0.07, "spec": 11.1}},
        {"loss_fn": "l1"},
    ],
)
def test_every_option_counts(tmp_path, change):
    """A side-car that says another value than was recorded fails."""
    make(tmp_path, "vqvae_loss", LOSS)
    info = json.loads((tmp_path / "vqvae_loss.json").read_text())
    info["loss_config"] |= change
    (tmp_path / "vqvae_loss.json").write_text(json.dumps(info))
    assert [row for row in run(tmp_path) if not row.ok]


def trajectory(folder, loss, bandwidths):
    """Write train_traj_vqvae_lass of two steps, whose side-car names no loss."""
    tensors, config = upstream_codec(), CONFIG
    codec = build_codec(codec_tensors(tensors, config, 40.0), config)
    codec.requires_grad_(True).train()
    objective = ReconstructionObjective(codec, loss, bandwidths)
    audio = 0.2 * torch.randn(2, 2400, generator=torch.Generator().manual_seed(4))
    arrays = {f"sd_before/{name}": t.clone() for name, t in tensors.items()}
    arrays["in/x"] = audio.unsqueeze(-1)
    train = {"lr": 1e-3, "lr_warmup": 2.0, "clip": 0.5, "betas": [0.9, 0.99], "eps": 1e-8}
    train["weight_decay"] = 0.0
    steps = upstream_steps(objective, audio, train, 2)
    state = codec.state_dict()
    names = codec_names(config).items()
    arrays |= {f"sd_after/{upstream}": state[name] for name, upstream in names}
    info = {"config": codec_hps(config) | WEIGHTS | {"mu": config.l_mu}, "fork": "lass"}
    info |= {"train": train, "steps": steps, "restore_k_num_tokens": [40 * config.l_bins] * 2}
    np.savez(folder / "train_traj_vqvae_lass.npz", **{k: v.numpy() for k, v in arrays.items()})
    (folder / "train_traj_vqvae_lass.json").write_text(json.dumps(info))


@pytest.mark.parametrize("recorded", ["lqvae_loss", "default"])
def test_trajectories_have_the_loss_of_their_first_step(tmp_path, recorded):
    for kind, change in (("vqvae_loss", {}), ("lqvae_loss", {"loss_fn": "l1", "linf_k": 9})):
        make(tmp_path, kind, LOSS | change)
    sizes = {"n_fft": 200, "hop_length": 45, "window_size": 130}
    loss = {
        "lqvae_loss": loss_config(LOSS | WEIGHTS | sizes | {"loss_fn": "l1"}),
        "default": LossConfig(**WEIGHTS),
    }[recorded]
    trajectory(tmp_path, loss, Bandwidths(**LOSS["bandwidth"]))
    rows = [row for row in run(tmp_path) if row.fixture.startswith("train")]
    assert len(rows) == 5 and [row for row in rows if not row.ok] == []


@pytest.mark.parametrize("turned", [False, True])
def test_the_start_of_a_codec_is_drawn_in_the_order_it_was_built_in(tmp_path, turned):
    """Blocks are drawn by growing dilation; a reversed stack then turns them round."""
    seed, names = 1234, [n for n in upstream_codec() if not n.startswith("bottleneck.")]
    shapes = {name: tensor.shape for name, tensor in upstream_codec().items()}
    generator, start = torch.Generator().manual_seed(seed), {}
    for level in range(CONFIG.levels):
        for part in ("encoders", "decoders"):
            own = [n for n in names if n.startswith(f"{part}.{level}.")]
            for name in in_reverse(own) if turned and part == "decoders" else own:
                fan = shapes[name.replace(".bias", ".weight")][1:].numel()
                start[name] = torch.empty(shapes[name])
                start[name].uniform_(-(fan**-0.5), fan**-0.5, generator=generator)
    for name in names:
        if name.endswith("weight"):
            start[name] = start[name] * 1.5
        else:
            start[name] = 0.1 * torch.randn(shapes[name], generator=generator)
    arrays = {f"sd_before/{name}": start[name].numpy() for name in names}
    np.savez(tmp_path / "train_traj_vqvae_lass.npz", **arrays)
    info = {"config": {"reverse_decoder_dilation": turned}, "steps": [{"lr": 1e-4}]}
    (tmp_path / "train_traj_vqvae_lass.json").write_text(json.dumps(info))
    (tmp_path / "other.json").write_text(json.dumps({"manual_seed": seed - 60}))
    found, where = drawn_codec(Fixture(tmp_path / "train_traj_vqvae_lass.npz"))
    assert where == seed and all(torch.allclose(found[n], start[n], atol=1e-6) for n in names)


def in_reverse(names):
    """A decoder's names with the three blocks of every stack from the last to the first."""
    blocks = {}
    for name in names:
        parts = name.split(".model.")
        stack = len(parts) == 4 and parts[1].endswith(".0")
        key = (*parts[:2], -int(parts[2])) if stack else (*parts[:2], 0)
        blocks.setdefault((key[:2] if stack else name), {}).setdefault(key, []).append(name)
    return [n for stack in blocks.values() for _, own in sorted(stack.items()) for n in own]


@needs_fixtures
def test_the_rate_of_bandwidths_is_not_that_of_the_items(tmp_path):
    info = json.loads((SHARED / "fixtures" / "misc.json").read_text())
    info["index_offset"]["sr"] = 44_100
    (tmp_path / "misc.json").write_text(json.dumps(info))
    (tmp_path / "misc.npz").write_bytes((SHARED / "fixtures" / "misc.npz").read_bytes())
    rows = {row.function: row for row in run(tmp_path)}
    assert rows["bandwidths"].ok and all(row.ok for row in rows.values())
    # Loss fixtures with other STFTs beside it change nothing: the recorded one is found.
    make(tmp_path, "vqvae_loss", LOSS)
    assert all(row.ok for row in run(tmp_path))
