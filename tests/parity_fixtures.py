"""The recorded tensors, and what tests of parity with them share.

They lie in LATENT_SEPARATION_SHARED, or in `shared` beside the checkout.
"""

import os
from pathlib import Path

import pytest
import torch

from jukebox_core.upstream.training import UpstreamAdam, clip_gradients, lr_factor

_named = os.environ.get("LATENT_SEPARATION_SHARED")
_candidates = [Path(_named)] if _named else [Path(__file__).parent.parent.parent / "shared"]
SHARED: Path | None = next((p for p in _candidates if (p / "fixtures").is_dir()), None)
needs_fixtures = pytest.mark.skipif(SHARED is None, reason="the recorded tensors are not here")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def upstream_steps(objective, batch, train, number):
    """Train on one batch as upstream; the steps as a side-car records them."""
    parameters, steps = [p for p in objective.parameters() if p.requires_grad], []
    optimizer = UpstreamAdam(
        parameters, train["lr"], tuple(train["betas"]), train["eps"], train["weight_decay"]
    )
    for step in range(number):
        optimizer.param_groups[0]["lr"] = rate = train["lr"] * lr_factor(step, train["lr_warmup"])
        optimizer.zero_grad()
        out = objective(batch)
        out.loss.backward()
        norm, _ = clip_gradients(parameters, train["clip"])
        optimizer.step()
        steps.append({"loss": out.loss.item(), "grad_norm": norm, "lr": rate})
        steps[-1] |= {key: value.item() for key, value in out.metrics.items() if "recons" in key}
    return steps
