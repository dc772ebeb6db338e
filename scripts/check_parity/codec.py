"""Parity checks of the codec: encoders, codes, decoders, bottleneck, objectives."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from jukebox_core.config import Bandwidths, LossConfig
from jukebox_core.upstream.layout import build_codec, codec_config, codec_names, codec_tensors
from jukebox_core.upstream.loss import bandwidths_of, loss_config
from jukebox_core.vqvae.bottleneck import Bottleneck
from jukebox_core.vqvae.losses import reconstruction_terms
from jukebox_core.vqvae.model import VQVAE
from jukebox_core.vqvae.objective import ObjectiveOutput, ReconstructionObjective
from lqvae.objective import LinearisationObjective
from scripts.check_parity.fixtures import FORWARD, GRADIENT, Fixture, Report, check, sub_config

RATE = 22_050  # side-cars do not state one, and no compared number depends on it


def codec_from(fixture: Fixture, prefix: str = "sd/") -> VQVAE:
    """The codec of a fixture's state dict, trainable, its averages as if used once."""
    tensors = fixture.under(prefix)
    config = codec_config(sub_config(fixture.info, sr=RATE), tensors)
    codec = build_codec(codec_tensors(tensors, config, usage=1.0), config)
    for level in codec.levels:
        codec.bottleneck(level).restore_averages()
    return codec.requires_grad_(True)


def loss_of(info: dict[str, Any]) -> tuple[LossConfig, Bandwidths]:
    """The loss of a side-car.

    Raises:
        ValueError: it has no loss or no bandwidths, or an unknown loss.
    """
    hps = _loss_hps(info)
    loss, bandwidths = loss_config(hps), bandwidths_of(hps)
    if loss is None or bandwidths is None:
        raise ValueError("the side-car has no loss or no bandwidths, expected both")
    return loss, bandwidths


def stft_of(info: dict[str, Any]) -> tuple[int, int, int]:
    """The single-scale STFT of a side-car, or upstream's default if it has none."""
    return (loss_config(_loss_hps(info)) or LossConfig()).spectral_stft


def _loss_hps(info: dict[str, Any]) -> dict[str, Any]:
    """The loss options of a side-car, under upstream's names."""
    stft = dict(info.get("spectral_stft", {}))
    if "win_length" in stft:
        stft["window_size"] = stft.pop("win_length")
    return {**info.get("config", {}), **info.get("loss_config", {}), **stft}


def make_objective(
    cls: type[ReconstructionObjective], codec: VQVAE, info: dict[str, Any]
) -> ReconstructionObjective:
    """The objective of a side-car."""
    loss, bandwidths = loss_of(info)
    alpha = info.get("alpha", info["config"].get("alpha"))
    if alpha is not None and issubclass(cls, LinearisationObjective):
        return cls(codec, loss, bandwidths, alpha)
    return cls(codec, loss, bandwidths)


def squared_distances(latents: Tensor, codebook: Tensor) -> Tensor:
    """[B, D, T] to [B, T, K], in float64."""
    return torch.cdist(latents.double().transpose(1, 2), codebook.double()).square()


@check("vqvae_forward")
@torch.no_grad()
def vqvae_forward(fixture: Fixture, report: Report) -> None:
    """Encoder stages, codes, dequantised latents and decoded audio of every level."""
    codec = codec_from(fixture).eval()
    audio = fixture.tensor("in/x").squeeze(-1)  # [B, T]
    for level in codec.levels:
        latents = codec.latents(audio, level)
        for stage, output in enumerate(codec.encoder(level).stage_outputs(audio.unsqueeze(1))):
            key = f"out/enc_level{level}_stage{stage}"
            report.close("VQVAE.encoder.stage_outputs", output, fixture.tensor(key))
        recorded = fixture.tensor(f"out/z_level{level}")
        distances = squared_distances(latents, codec.bottleneck(level).codebook)
        margin = fixture.tensor(f"out/code_margin_level{level}")
        report.codes("VQVAE.encode", codec.encode(audio, level), recorded, distances, margin)
        dequantised = codec.bottleneck(level).decode(recorded)
        report.equal(
            "Bottleneck.decode", dequantised, fixture.tensor(f"out/dequantised_level{level}")
        )
        decoded = fixture.tensor(f"out/decoded_from_level{level}").squeeze(-1)
        report.close("VQVAE.decode", codec.decode(recorded, level), decoded)


@check("vqvae_loss")
def vqvae_loss(fixture: Fixture, report: Report) -> None:
    """The plain objective, in evaluation and training mode."""
    _objective(fixture, report, ReconstructionObjective)


@check("lqvae_loss")
def lqvae_loss(fixture: Fixture, report: Report) -> None:
    """The objective with latent linearisation, in evaluation and training mode."""
    _objective(fixture, report, LinearisationObjective)


def _objective(fixture: Fixture, report: Report, cls: type[ReconstructionObjective]) -> None:
    audio = fixture.tensor("in/x").squeeze(-1)
    for mode in ("eval", "train"):
        codec = codec_from(fixture).train(mode == "train")
        for level in codec.levels if mode == "train" else ():
            bottleneck = codec.bottleneck(level)
            bottleneck.ema_sum.copy_(fixture.tensor(f"in/train/k_sum_level{level}"))
            bottleneck.ema_count.copy_(fixture.tensor(f"in/train/k_elem_level{level}"))
        with torch.no_grad():
            codec.eval()
            decoded = {level: out.audio for level, out in codec(audio).items()}
            objective = make_objective(cls, codec, fixture.info)
            slack = {}
            if isinstance(objective, LinearisationObjective) and mode == "eval":
                slack = _tie_slack(objective, audio)
        objective.train(mode == "train")
        out = objective(audio)
        out.loss.backward()
        name = f"{cls.__name__} ({mode})"
        _compare_losses(fixture, report, name, mode, out, decoded, slack)
        finest = decoded[min(decoded)]
        report.close(f"{name} audio", finest, fixture.tensor(f"out/{mode}/x_out").squeeze(-1))
        _compare_gradients(fixture, report, name, f"out/{mode}/", codec)
        for level in codec.levels:
            _compare_codebook(
                fixture, report, f"{name} codebook", f"out/{mode}/after/", codec, level
            )


def _compare_losses(
    fixture: Fixture,
    report: Report,
    name: str,
    mode: str,
    out: ObjectiveOutput,
    decoded: dict[int, Tensor],
    slack: dict[str, float],
) -> None:
    loss, bandwidths = loss_of(fixture.info)
    audio = fixture.tensor("in/x").squeeze(-1)
    metrics, note = dict(out.metrics), ""
    if "spectral_loss" not in metrics:  # training does not compute it if its weight is 0
        spectral = {
            f"spectral_loss_l{level + 1}": reconstruction_terms(audio, x, loss, bandwidths)[
                "spectral_loss"
            ]
            for level, x in decoded.items()
        }
        metrics |= spectral | {"spectral_loss": torch.stack(list(spectral.values())).sum()}
        note = "spectral_loss through losses.reconstruction_terms"
    if "latent_loss_l1" in metrics:
        metrics["latent_loss"] = metrics["latent_loss_l1"]
        note = "; ".join(filter(None, [note, "recorded latent_loss is level 1's"]))
    recorded = fixture.info[f"{mode}_metrics"]
    for key, value in recorded.items():
        if key not in metrics:
            report.fail(f"{name} metrics", f"no metric is called {key}")
            continue
        report.close(f"{name} metrics", metrics[key], value, FORWARD, note, slack.get(key, 0.0))
    report.close(
        f"{name} loss", out.loss, fixture.info[f"{mode}_loss"], slack=slack.get("loss", 0.0)
    )


def _tie_slack(objective: LinearisationObjective, audio: Tensor) -> dict[str, float]:
    """Largest change of the evaluated latent losses by the choice among tied codes.

    At alpha = (0.5, 0.5) the mean of two codes is equally far from both: rounding decides.
    """
    slack = {}
    codec = objective.codec
    (a, b), (first, second) = objective.alpha, audio.chunk(2)
    for level in codec.levels:
        bottleneck = codec.bottleneck(level)
        quantised = bottleneck.decode(bottleneck.encode(codec.latents(audio, level)))
        q0, q1 = quantised.chunk(2)
        distances = squared_distances(a * q0 + b * q1, bottleneck.codebook)  # [B, T, K]
        target = codec.latents(a * first + b * second, level)
        expected = bottleneck.decode(bottleneck.encode(target))
        losses = squared_distances(expected, bottleneck.codebook)  # [B, T, K]
        tied = distances <= distances.min(-1, keepdim=True).values + 1e-6
        highest = losses.masked_fill(~tied, -torch.inf).amax(-1)
        lowest = losses.masked_fill(~tied, torch.inf).amin(-1)
        slack[f"latent_loss_l{level + 1}"] = (
            (highest - lowest).sum() / quantised[: len(q0)].numel()
        ).item()
    slack |= {"loss": sum(slack.values()), "latent_loss": slack["latent_loss_l1"]}
    return slack


def _compare_gradients(
    fixture: Fixture, report: Report, name: str, prefix: str, codec: VQVAE
) -> None:
    native = {upstream: name for name, upstream in codec_names(codec.config).items()}
    parameters = dict(codec.named_parameters())
    norms = fixture.tensor(f"{prefix}grad_norms")
    for expected, upstream in zip(
        norms.tolist(), fixture.info["param_names_for_grad_norms"], strict=True
    ):
        gradient = parameters[native[upstream]].grad
        got = -1.0 if gradient is None else gradient.norm().item()
        report.close(f"{name} gradient norms", got, expected, GRADIENT)
    for upstream, expected_gradient in fixture.under(f"{prefix}grad/").items():
        gradient = parameters[native[upstream]].grad
        report.close(f"{name} gradients", gradient, expected_gradient, GRADIENT)


def _compare_codebook(
    fixture: Fixture, report: Report, name: str, prefix: str, codec: VQVAE, level: int
) -> None:
    bottleneck = codec.bottleneck(level)
    parts = {"k": "codebook", "k_sum": "ema_sum", "k_elem": "ema_count"}
    for upstream, attribute in parts.items():
        key = f"{prefix}{upstream}_level{level}"
        if key in fixture:
            report.close(name, getattr(bottleneck, attribute), fixture.tensor(key))


class _Replayed(Bottleneck):
    """A bottleneck that uses recorded random latents and stores those that it would draw."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.recorded: list[Tensor] = []
        self.drawn: list[Tensor] = []

    def _random_latents(
        self, flat: Tensor, steps: int, generator: torch.Generator | None
    ) -> Tensor:
        self.drawn.append(super()._random_latents(flat, steps, generator))
        return self.recorded[len(self.drawn) - 1]


@check("bottleneck_ema")
def bottleneck_ema(fixture: Fixture, report: Report) -> None:
    """The codebook's exponential averages: updates, restarts, initialisation."""
    config = fixture.info["config"]
    for case, steps in fixture.info["cases"].items():
        threshold = config.get("threshold", 1.0)
        bottleneck = _Replayed(config["k_bins"], config["emb_width"], config["mu"], threshold)
        if f"{case}/before/k_elem" in fixture:
            bottleneck.restore_averages()
            bottleneck.codebook.copy_(fixture.tensor(f"{case}/before/k"))
            bottleneck.ema_sum.copy_(fixture.tensor(f"{case}/before/k_sum"))
            bottleneck.ema_count.copy_(fixture.tensor(f"{case}/before/k_elem"))
        for step, info in enumerate(steps):
            _bottleneck_step(fixture, report, f"{case}/step{step}/", bottleneck, info)


def _bottleneck_step(
    fixture: Fixture, report: Report, prefix: str, bottleneck: _Replayed, info: dict[str, Any]
) -> None:
    expected = fixture.under(prefix)
    bottleneck.drawn.clear()
    bottleneck.recorded = [expected[k] for k in ("init_k_rand", "k_rand") if k in expected]
    latents = expected["x"].requires_grad_()
    torch.manual_seed(info["manual_seed"])
    # The codebook that selects the codes: an uninitialised one is drawn first.
    before = expected.get("init_k_rand", bottleneck.codebook.clone())
    out = bottleneck(latents)
    (0.5 * out.latents.sum() + out.commit).backward()
    name = "Bottleneck"
    distances = squared_distances(latents.detach(), before)
    nearest = distances.topk(2, largest=False).values
    margin = nearest[..., 1] - nearest[..., 0]
    report.codes(f"{name} codes", out.codes, expected["codes"], distances, margin)
    report.close(f"{name} latents", out.latents, expected["x_d"])
    report.close(f"{name} metrics", out.commit, expected["commit"])
    # The mean distance is a difference of squared norms; where the codes equal the latents, only
    # their rounding remains.
    norms = latents.detach().square().sum(1).mean().item()
    slacks = {"dk": 1e-9, "fit": 2 * torch.finfo(torch.float32).eps * norms}
    for key, value in expected.items():
        if match := re.fullmatch(r"metric/(\w+)", key):
            slack = slacks.get(match[1], 0.0)
            report.close(f"{name} metrics", out.metrics[match[1]], value, slack=slack)
    gradient = expected["grad_x_of_half_sum_xd_plus_commit"]
    report.close(f"{name} gradient", latents.grad, gradient)
    for key, attribute in (("k", "codebook"), ("k_sum", "ema_sum"), ("k_elem", "ema_count")):
        report.close(f"{name} state", getattr(bottleneck, attribute), expected[f"after/{key}"])
    draws = "after torch.manual_seed, by the same random permutation"
    for drawn, recorded in zip(bottleneck.drawn, bottleneck.recorded, strict=True):
        report.close(f"{name} random latents", drawn, recorded, note=draws)
