"""Parity checks of the codec: encoders, codes, decoders, bottleneck, objectives."""

from __future__ import annotations

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
from scripts.check_parity.fixtures import FORWARD, Fixture, check

RATE = 22_050  # side-cars do not state one, and no compared number depends on it
CODEBOOK_STATE = {"k": "codebook", "k_sum": "ema_sum", "k_elem": "ema_count"}


def codec_from(fixture: Fixture, prefix: str = "sd/") -> VQVAE:
    """The codec of a fixture's state dict, trainable, its averages as if used once."""
    tensors = fixture.under(prefix)
    config = codec_config(fixture.config(sr=RATE), tensors)
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
    alpha = info.get("alpha", info["config"].get("alpha"))
    if alpha is not None and issubclass(cls, LinearisationObjective):
        return cls(codec, *loss_of(info), alpha)
    return cls(codec, *loss_of(info))


def squared_distances(latents: Tensor, codebook: Tensor) -> Tensor:
    """[B, D, T] to [B, T, K], in float64."""
    return torch.cdist(latents.double().transpose(1, 2), codebook.double()).square()


@check("vqvae_forward")
@torch.no_grad()
def vqvae_forward(fixture: Fixture) -> None:
    """Encoder stages, codes, dequantised latents and decoded audio of every level."""
    codec = codec_from(fixture).eval()
    audio = fixture.tensor("in/x").squeeze(-1)  # [B, T]
    for level in codec.levels:
        latents = codec.latents(audio, level)
        for stage, output in enumerate(codec.encoder(level).stage_outputs(audio.unsqueeze(1))):
            key = f"out/enc_level{level}_stage{stage}"
            fixture.close("VQVAE.encoder.stage_outputs", output, key)
        recorded = fixture.tensor(f"out/z_level{level}")
        distances = squared_distances(latents, codec.bottleneck(level).codebook)
        margin = fixture.tensor(f"out/code_margin_level{level}")
        fixture.codes("VQVAE.encode", codec.encode(audio, level), recorded, distances, margin)
        dequantised = codec.bottleneck(level).decode(recorded)
        fixture.equal("Bottleneck.decode", dequantised, f"out/dequantised_level{level}")
        decoded = codec.decode(recorded, level).unsqueeze(-1)
        fixture.close("VQVAE.decode", decoded, f"out/decoded_from_level{level}")


@check("vqvae_loss|lqvae_loss")
def codec_loss(fixture: Fixture) -> None:
    """The objective, plain or with latent linearisation, in evaluation and training mode."""
    cls = LinearisationObjective if fixture.name == "lqvae_loss" else ReconstructionObjective
    audio = fixture.tensor("in/x").squeeze(-1)
    for mode in ("eval", "train"):
        codec = codec_from(fixture)
        for level in codec.levels if mode == "train" else ():
            bottleneck = codec.bottleneck(level)
            bottleneck.ema_sum.copy_(fixture.tensor(f"in/train/k_sum_level{level}"))
            bottleneck.ema_count.copy_(fixture.tensor(f"in/train/k_elem_level{level}"))
        objective = make_objective(cls, codec, fixture.info)
        slack: dict[str, float] = {}
        with torch.no_grad():
            codec.eval()
            decoded = {level: out.audio for level, out in codec(audio).items()}
            if isinstance(objective, LinearisationObjective) and mode == "eval":
                slack = _tie_slack(objective, audio)
        objective.train(mode == "train")
        out = objective(audio)
        out.loss.backward()
        name = f"{cls.__name__} ({mode})"
        metrics, note = _metrics(fixture, out, decoded)
        for key, value in fixture.info[f"{mode}_metrics"].items():
            if key not in metrics:
                fixture.fail(f"{name} metrics", f"no metric is called {key}")
                continue
            tie = slack.get(key, 0.0)
            fixture.close(f"{name} metrics", metrics[key], value, FORWARD, note, tie)
        recorded, tie = fixture.info[f"{mode}_loss"], slack.get("loss", 0.0)
        fixture.close(f"{name} loss", out.loss, recorded, slack=tie)
        finest = decoded[min(decoded)].unsqueeze(-1)
        fixture.close(f"{name} audio", finest, f"out/{mode}/x_out")
        parameters, names = dict(codec.named_parameters()), codec_names(codec.config)
        fixture.gradients(
            name, f"out/{mode}/", {names[own]: tensor for own, tensor in parameters.items()}
        )
        for level in codec.levels:
            for upstream, attribute in CODEBOOK_STATE.items():
                key = f"out/{mode}/after/{upstream}_level{level}"
                if key in fixture.arrays:
                    own = getattr(codec.bottleneck(level), attribute)
                    fixture.close(f"{name} codebook", own, key)


def _metrics(
    fixture: Fixture, out: ObjectiveOutput, decoded: dict[int, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """The objective's metrics, with upstream's further ones, and a note about these."""
    metrics, notes = dict(out.metrics), []
    if "spectral_loss" not in metrics:  # training does not compute it if its weight is 0
        audio, loss = fixture.tensor("in/x").squeeze(-1), loss_of(fixture.info)
        for level, x in decoded.items():
            terms = reconstruction_terms(audio, x, *loss)
            metrics[f"spectral_loss_l{level + 1}"] = terms["spectral_loss"]
        levels = [metrics[f"spectral_loss_l{level + 1}"] for level in decoded]
        metrics["spectral_loss"] = torch.stack(levels).sum()
        notes.append("spectral_loss through losses.reconstruction_terms")
    if "latent_loss_l1" in metrics:
        metrics["latent_loss"] = metrics["latent_loss_l1"]
        notes.append("recorded latent_loss is level 1's")
    return metrics, "; ".join(notes)


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
        slack[f"latent_loss_l{level + 1}"] = ((highest - lowest).sum() / q0.numel()).item()
    slack |= {"loss": sum(slack.values()), "latent_loss": slack["latent_loss_l1"]}
    return slack


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
def bottleneck_ema(fixture: Fixture) -> None:
    """The codebook's exponential averages: updates, restarts, initialisation."""
    config = fixture.info["config"]
    for case, steps in fixture.info["cases"].items():
        threshold = config.get("threshold", 1.0)
        bottleneck = _Replayed(config["k_bins"], config["emb_width"], config["mu"], threshold)
        if f"{case}/before/k_elem" in fixture.arrays:
            bottleneck.restore_averages()
            for key, attribute in CODEBOOK_STATE.items():
                getattr(bottleneck, attribute).copy_(fixture.tensor(f"{case}/before/{key}"))
        for step, info in enumerate(steps):
            _bottleneck_step(fixture, f"{case}/step{step}/", bottleneck, info)


def _bottleneck_step(
    fixture: Fixture, prefix: str, bottleneck: _Replayed, info: dict[str, Any]
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
    distances = squared_distances(latents.detach(), before)
    nearest = distances.topk(2, largest=False).values
    margin = nearest[..., 1] - nearest[..., 0]
    fixture.codes("Bottleneck codes", out.codes, expected["codes"], distances, margin)
    fixture.close("Bottleneck latents", out.latents, expected["x_d"])
    fixture.close("Bottleneck metrics", out.commit, expected["commit"])
    # The mean distance is a difference of squared norms; where the codes equal the latents, only
    # their rounding remains.
    norms = latents.detach().square().sum(1).mean().item()
    slacks = {"dk": 1e-9, "fit": 2 * torch.finfo(torch.float32).eps * norms}
    for key, value in fixture.under(f"{prefix}metric/").items():
        fixture.close("Bottleneck metrics", out.metrics[key], value, slack=slacks.get(key, 0.0))
    gradient = expected["grad_x_of_half_sum_xd_plus_commit"]
    fixture.close("Bottleneck gradient", latents.grad, gradient)
    for key, attribute in CODEBOOK_STATE.items():
        fixture.close("Bottleneck state", getattr(bottleneck, attribute), expected[f"after/{key}"])
    draws = "after torch.manual_seed, by the same random permutation"
    for drawn, recorded in zip(bottleneck.drawn, bottleneck.recorded, strict=True):
        fixture.close("Bottleneck random latents", drawn, recorded, note=draws)
