"""Parity checks of training: optimiser, schedule, loss scale, averages, recorded trajectories."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from jukebox_core.config import Bandwidths, LossConfig
from jukebox_core.prior.objective import PriorObjective
from jukebox_core.upstream_layout import codec_names, original_tensors, prior_names
from jukebox_core.upstream_optim import (
    LossScale,
    OriginalAdam,
    OriginalWeightAverage,
    clip_gradients,
    lr_factor,
)
from jukebox_core.vqvae.objective import ReconstructionObjective
from lqvae.objective import LinearisationObjective
from scripts._parity import TRAJECTORY, Fixture, Report, check, sub_config
from scripts._parity_codec import codec_from, loss_config
from scripts._parity_prior import prior_from


@check("optim_ema")
def optim_ema(fixture: Fixture, report: Report) -> None:
    """Adam steps with clipping, both weight averages, schedule and loss scale."""
    config = fixture.info["config"]
    parameter = nn.Parameter(fixture.tensor("in/p0"))
    optimizer = OriginalAdam(
        [parameter], config["lr"], tuple(config["betas"]), config["eps"], config["wd"]
    )
    averages = {"ema": OriginalWeightAverage([parameter], config["mu"])}
    for key in fixture.arrays:
        if match := re.fullmatch(r"out/(cpu_ema_freq(\d+)_)0", key):
            every = int(match[2])
            averages[match[1]] = OriginalWeightAverage([parameter], config["mu"], every, "cpu")
    for step, info in enumerate(fixture.info["steps"]):
        parameter.grad = fixture.tensor(f"in/grad{step}")
        norm, scale = clip_gradients([parameter], config["clip"])
        report.close("clip_gradients", norm, info["grad_norm"])
        report.close("clip_gradients", scale, info["scale"])
        optimizer.step()
        report.close("OriginalAdam", parameter, fixture.tensor(f"out/p{step}"))
        for name, average in averages.items():
            average.update()
            recorded = fixture.tensor(f"out/{name}{step}")
            report.close("OriginalWeightAverage", average.values[0], recorded)
    state = optimizer.state[parameter]
    for name in ("exp_avg", "exp_avg_sq"):
        report.close("OriginalAdam moments", state[name], fixture.tensor(f"out/{name}"))
    _schedules(fixture, report)
    _loss_scale(fixture, report)


def _schedules(fixture: Fixture, report: Report) -> None:
    for key, values in fixture.info.items():
        if not key.startswith("lr_schedule"):
            continue
        numbers = {name: float(n) for name, n in re.findall(r"_(start|decay|warmup)([\d.]+)", key)}
        arguments: dict[str, Any] = {"warmup": numbers.get("warmup", 100.0)}
        if "start" in numbers:
            arguments |= {"decay_start": numbers["start"], "decay": numbers["decay"]}
        for step, factor in values.items():
            report.close("lr_factor", lr_factor(int(step), **arguments), factor)


def _loss_scale(fixture: Fixture, report: Report) -> None:
    info = fixture.info["loss_scaler"]
    growth = re.fullmatch(r"2\*\*\(1/([\d.]+)\)", str(info.get("scale_factor", "2**(1/250)")))
    scale = LossScale(info["init"], 2 ** (1 / float(growth[1])) if growth else math.nan)
    for overflow, after in zip(info["overflow_sequence"], info["scale_after"], strict=True):
        report.close("LossScale", scale.update(bool(overflow)), after)


@check("train_traj_vqvae_.+")
def train_traj_vqvae(fixture: Fixture, report: Report) -> None:
    """Codec training steps: loss, gradient norm, metrics of every step, weights after the last."""
    info = fixture.info
    codec = codec_from(fixture, "sd_before/").train()
    usage = info["restore_k_num_tokens"] / codec.config.l_bins
    for level in codec.levels:
        codec.bottleneck(level).restore_averages(usage)
    plain = info["fork"] == "lass"
    cls = ReconstructionObjective if plain else LinearisationObjective
    objective = cls(codec, *_loss_of(info))
    audio = fixture.tensor("in/x").squeeze(-1)
    _trajectory(fixture, report, cls.__name__, objective, audio)
    after = original_tensors(codec.state_dict(), codec_names(codec.config), turn=False)
    _compare_weights(fixture, report, f"{cls.__name__} weights", after)


def _loss_of(info: dict[str, Any]) -> tuple[LossConfig, Bandwidths]:
    """The loss of a trajectory; a side-car without one used the defaults and unit bandwidths."""
    if "loss_config" in info:
        return loss_config(info)
    config = info["config"]
    loss = LossConfig(
        commit=config["commit"], spectral=config["spectral"], multispectral=config["multispectral"]
    )
    return loss, Bandwidths()


@check("train_traj_prior_.+")
def train_traj_prior(fixture: Fixture, report: Report) -> None:
    """Prior training steps: loss and gradient norm of every step, weights after the last."""
    tensors = fixture.under("sd_before/")
    prior = prior_from(tensors, sub_config(fixture.info)).train()
    _trajectory(
        fixture, report, "PriorObjective", PriorObjective(None, prior), fixture.tensor("in/z")
    )
    levels = sum("bottleneck.level_blocks" in name for name in tensors)
    names = prior_names(prior.config, top=max(levels - 1, 0))
    after = original_tensors(prior.state_dict(), names, turn=True)
    _compare_weights(
        fixture, report, "PriorObjective weights", {f"prior.{n}": t for n, t in after.items()}
    )


def _trajectory(
    fixture: Fixture, report: Report, name: str, objective: nn.Module, batch: Tensor
) -> None:
    """Train on one batch by the originals' optimiser, as the side-car says."""
    train = fixture.info["train"]
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = OriginalAdam(
        parameters, train["lr"], tuple(train["betas"]), train["eps"], train["weight_decay"]
    )
    note = "every step builds on the rounding of those before"
    for step, recorded in enumerate(fixture.info["steps"]):
        rate = train["lr"] * lr_factor(step, train["lr_warmup"])
        report.close(f"{name} learning rate", rate, recorded["lr"])
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        out = objective(batch)
        out.loss.backward()
        norm, _ = clip_gradients(parameters, train["clip"])
        optimizer.step()
        report.close(f"{name} losses", out.loss, recorded["loss"], TRAJECTORY, note)
        report.close(f"{name} gradient norms", norm, recorded["grad_norm"], TRAJECTORY, note)
        metrics = dict(out.metrics)
        if "latent_loss_l1" in metrics:
            metrics["latent_loss"] = metrics["latent_loss_l1"]
        for key in recorded.keys() & metrics.keys() - {"loss", "grad_norm", "lr"}:
            report.close(f"{name} metrics", metrics[key], recorded[key], TRAJECTORY, note)


def _compare_weights(fixture: Fixture, report: Report, name: str, after: dict[str, Tensor]) -> None:
    for key, recorded in fixture.under("sd_after/").items():
        if key in after:
            report.close(name, after[key], recorded, TRAJECTORY)
        elif not key.startswith("prior.bottleneck."):
            report.fail(name, f"no tensor is called {key}")
