"""Parity checks of training: optimiser, schedule, loss scale, averages, recorded trajectories."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jukebox_core.prior.objective import PriorObjective
from jukebox_core.upstream.layout import codec_names, upstream_tensors
from jukebox_core.upstream.training import (
    LossScale,
    UpstreamAdam,
    UpstreamWeightAverage,
    clip_gradients,
    lr_factor,
)
from jukebox_core.vqvae.objective import ReconstructionObjective
from lqvae.objective import LinearisationObjective
from scripts.check_parity.codec import codec_from, make_objective
from scripts.check_parity.fixtures import (
    EXACT,
    TRAJECTORY,
    Fixture,
    check,
    relative_error,
)
from scripts.check_parity.prior import names_of, prior_from
from scripts.check_parity.seeds import (
    drawn_codec,
    drawn_prior,
    recorded_by_reference,
)

EXTRAPOLATION = 2e-2


@check("optim_ema")
def optim_ema(fixture: Fixture) -> None:
    """Adam steps with clipping, both weight averages, schedule and loss scale."""
    config = fixture.info["config"]
    parameter = nn.Parameter(fixture.tensor("in/p0"))
    optimizer = UpstreamAdam(
        [parameter], config["lr"], tuple(config["betas"]), config["eps"], config["wd"]
    )
    averages = {"ema": UpstreamWeightAverage([parameter], config["mu"])}
    for match in fixture.matching(r"out/(cpu_ema_freq(\d+)_)0"):
        every = int(match[2])
        averages[match[1]] = UpstreamWeightAverage([parameter], config["mu"], every, "cpu")
    for step, info in enumerate(fixture.info["steps"]):
        parameter.grad = fixture.tensor(f"in/grad{step}")
        norm, scale = clip_gradients([parameter], config["clip"])
        fixture.close("clip_gradients", norm, info["grad_norm"])
        fixture.close("clip_gradients", scale, info["scale"])
        optimizer.step()
        note = _shrink_as_recorded(parameter, fixture.tensor(f"out/p{step}"), config["mu"])
        fixture.close("UpstreamAdam", parameter, fixture.tensor(f"out/p{step}"), note=note)
        for name, average in averages.items():
            average.update()
            fixture.close("UpstreamWeightAverage", average.values[0], f"out/{name}{step}")
    for name in ("exp_avg", "exp_avg_sq"):
        state = optimizer.state[parameter][name]
        fixture.close("UpstreamAdam moments", state, f"out/{name}")
    _schedules(fixture)
    _loss_scale(fixture)


@torch.no_grad()
def _shrink_as_recorded(parameter: Tensor, recorded: Tensor, mu: float) -> str:
    """Shrink the parameters as upstream's average on the CPU did, if the recording shows it.

    The average starts as `parameters.cpu()`, which on the CPU is no copy: it then averages the
    parameters with themselves, which removes (1 - mu)^2 of them at each step.
    """
    shrunk = parameter * mu
    shrunk.add_(shrunk, alpha=1 - mu)
    if (shrunk - recorded).abs().sum() >= (parameter - recorded).abs().sum():
        return ""
    parameter.copy_(shrunk)
    return "after a CPU average that shared the parameters' memory took (1 - mu)^2 away"


def _schedules(fixture: Fixture) -> None:
    for key, values in fixture.info.items():
        if not key.startswith("lr_schedule"):
            continue
        numbers = {name: float(n) for name, n in re.findall(r"_(start|decay|warmup)([\d.]+)", key)}
        arguments: dict[str, Any] = {"warmup": numbers.get("warmup", 100.0)}
        if "start" in numbers:
            arguments |= {"decay_start": numbers["start"], "decay": numbers["decay"]}
        for step, factor in values.items():
            fixture.close("lr_factor", lr_factor(int(step), **arguments), factor)


def _loss_scale(fixture: Fixture) -> None:
    info = fixture.info["loss_scaler"]
    factor = str(info.get("scale_factor", "2**(1/250)"))
    root = re.fullmatch(r"2 ?\*\* ?\(1(?:\.0)? ?/ ?([\d.]+)\)", factor)
    scale = LossScale(info["init"], 2 ** (1 / float(root[1])) if root else float(factor))
    for overflow, after in zip(info["overflow_sequence"], info["scale_after"], strict=True):
        fixture.close("LossScale", scale.update(bool(overflow)), after)


@check("train_traj_vqvae_.+")
def train_traj_vqvae(fixture: Fixture) -> None:
    """Codec training steps: loss, gradient norm, metrics of every step, weights after the last."""
    info = fixture.info
    codec = codec_from(fixture, "sd_before/").train()
    tokens = info["restore_k_num_tokens"]
    for level in codec.levels:
        used = tokens[level] if isinstance(tokens, list) else tokens
        codec.bottleneck(level).restore_averages(used / codec.config.l_bins)
    cls = ReconstructionObjective if info["fork"] == "lass" else LinearisationObjective
    objectives = [make_objective(cls, codec, possible) for possible in _with_losses(fixture)]
    if not objectives:
        fixture.fail("objective", "neither this side-car nor a sibling's has a loss_config")
        return
    audio, names = fixture.tensor("in/x").squeeze(-1), codec_names(codec.config)
    if recorded_by_reference(fixture) and not _go_back(fixture, codec, names, drawn_codec(fixture)):
        native, after = {n: name for name, n in names.items()}, fixture.under("sd_after/")
        books = {native[n]: t for n, t in after.items() if n.startswith("bottleneck.")}
        codec.load_state_dict(books, strict=False)
        _last_loss(fixture, objectives[0], audio)
        return
    objective = min(objectives, key=lambda each: _first_error(each, audio, info["steps"][0]))
    _trajectory(fixture, objective, audio)
    after = upstream_tensors(codec.state_dict(), names, turn=False)
    _compare_weights(fixture, f"{cls.__name__} weights", after)


def _with_losses(fixture: Fixture) -> list[dict[str, Any]]:
    """Copies of the side-car, one for each loss that the recording may have used.

    Without a loss in the side-car, they come from the loss fixtures in the folder, complete or with
    upstream's default terms; the first recorded step decides.
    """
    info = fixture.info
    if "loss_config" in info:
        return [info]
    names = ["vqvae_loss", "lqvae_loss"]
    candidates = []
    for name in names if info["fork"] == "lass" else reversed(names):
        sibling = fixture.side_car(name)
        if loss := sibling.get("loss_config"):
            keys = sibling.keys() & {"loss_config", "spectral_stft", "alpha"}
            candidates.append(info | {key: sibling[key] for key in keys})
            candidates.append(info | {"loss_config": {"bandwidth": loss["bandwidth"]}})
    return candidates


@torch.no_grad()
def _first_error(objective: nn.Module, audio: Tensor, recorded: Mapping[str, float]) -> float:
    """Largest relative error of an objective's terms at the first recorded step."""
    out = copy.deepcopy(objective)(audio)
    terms = {**out.metrics, "loss": out.loss}
    return max(relative_error(terms[k], v) for k, v in recorded.items() if k in terms)


@check("train_traj_prior_.+")
def train_traj_prior(fixture: Fixture) -> None:
    """Prior training steps: loss and gradient norm of every step, weights after the last."""
    tensors = fixture.under("sd_before/")
    prior = prior_from(tensors, fixture.config()).train()
    objective, codes = PriorObjective(None, prior), fixture.tensor("in/z")
    names = {name: f"prior.{upstream}" for name, upstream in names_of(prior, tensors).items()}
    if recorded_by_reference(fixture) and not _go_back(fixture, prior, names, drawn_prior(fixture)):
        _last_loss(fixture, objective, codes)
        return
    _trajectory(fixture, objective, codes)
    after = upstream_tensors(prior.state_dict(), names, turn=True)
    _compare_weights(fixture, "PriorObjective weights", after)


@torch.no_grad()
def _go_back(
    fixture: Fixture,
    model: nn.Module,
    names: Mapping[str, str],
    drawn: tuple[dict[str, Tensor], int] | None,
) -> bool:
    """Put a model back to its start, drawn again; False if no seed fits."""
    if drawn is None:
        return False
    start, seed = drawn
    state = {names[name]: own for name, own in model.state_dict().items() if name in names}
    for name, tensor in start.items():
        own = state[name]
        own.copy_(tensor.T if name.endswith(".w") else tensor.reshape(own.shape))
    text = "sd_before holds the weights after training; its start, drawn again from seed"
    fixture.error("start", 0.0, EXACT, f"{text} {seed}")
    return True


def _last_loss(fixture: Fixture, objective: nn.Module, batch: Tensor) -> None:
    """Without a start: the loss at the recorded end against the extrapolated recorded losses."""
    losses = [step["loss"] for step in fixture.info["steps"]]
    for step, recorded in enumerate(fixture.info["steps"]):
        rate = fixture.info["train"]["lr"] * lr_factor(step, fixture.info["train"]["lr_warmup"])
        fixture.close("learning rate", rate, recorded["lr"])
    expected = 3 * losses[-1] - 3 * losses[-2] + losses[-3] if len(losses) > 2 else losses[-1]
    with torch.no_grad():
        loss = objective(batch).loss
    fixture.close(
        "loss after the last step",
        loss,
        expected,
        EXTRAPOLATION,
        "sd_before holds the weights after training, and no seed gives the start: the loss there "
        "against the recorded losses, extrapolated",
    )


def _trajectory(fixture: Fixture, objective: nn.Module, batch: Tensor) -> None:
    """Train on one batch by upstream's optimiser, with the side-car's settings."""
    name, train = type(objective).__name__, fixture.info["train"]
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = UpstreamAdam(
        parameters, train["lr"], tuple(train["betas"]), train["eps"], train["weight_decay"]
    )
    note = "every step builds on the rounding of the steps before"
    for step, recorded in enumerate(fixture.info["steps"]):
        rate = train["lr"] * lr_factor(step, train["lr_warmup"])
        fixture.close(f"{name} learning rate", rate, recorded["lr"])
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        out = objective(batch)
        out.loss.backward()
        norm, _ = clip_gradients(parameters, train["clip"])
        optimizer.step()
        fixture.close(f"{name} losses", out.loss, recorded["loss"], TRAJECTORY, note)
        fixture.close(f"{name} gradient norms", norm, recorded["grad_norm"], TRAJECTORY, note)
        metrics = dict(out.metrics)
        if "latent_loss_l1" in metrics:
            metrics["latent_loss"] = metrics["latent_loss_l1"]
        for key in recorded.keys() & metrics.keys() - {"loss", "grad_norm", "lr"}:
            fixture.close(f"{name} metrics", metrics[key], recorded[key], TRAJECTORY, note)


def _compare_weights(fixture: Fixture, name: str, after: dict[str, Tensor]) -> None:
    for key, recorded in fixture.under("sd_after/").items():
        if key in after:
            fixture.close(name, after[key], recorded, TRAJECTORY)
        elif not key.startswith("prior.bottleneck."):
            fixture.fail(name, f"no tensor is called {key}")
