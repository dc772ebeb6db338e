"""Joining and parting joint samples, number by number."""

import math

import torch

from jukebox_core.separation.samples import Candidates, JointSamples, join_groups, join_shifts

NAMES = ("bass", "drums")


def made(batch, n, seed=0, weighted=True):
    g = torch.Generator().manual_seed(seed)
    codes = {name: torch.randint(0, 9, (batch, n, 4), generator=g) for name in NAMES}
    log_prior = {name: torch.randn(batch, n, generator=g) for name in NAMES}
    weights = torch.randn(batch, n, generator=g).log_softmax(1) if weighted else None
    evidence = torch.randn(batch, generator=g) if weighted else None
    return JointSamples(codes, log_prior, torch.randn(batch, n, generator=g), weights, evidence)


def fields(samples):
    """All tensors of samples, by name."""
    named = {f"codes {k}": x for k, x in samples.codes.items()}
    named |= {f"log_prior {k}": x for k, x in samples.log_prior.items()}
    rest = samples._asdict().items()
    return named | {k: x for k, x in rest if isinstance(x, torch.Tensor)}


def test_a_chunk_has_its_part_of_every_field():
    for weighted in (True, False):
        samples = made(3, 2, weighted=weighted)
        for b in range(3):
            one = fields(samples.chunk(b))
            assert one.keys() == fields(samples).keys()
            assert all(torch.equal(one[k], x[b][None]) for k, x in fields(samples).items())
    audio = {name: torch.randn(3, 2, 5) for name in NAMES}
    assert Candidates(audio, {}, samples).chunk(1).samples.codes["bass"].shape == (1, 2, 4)
    assert Candidates(audio, {}).chunk(1).samples is None


def test_groups_stand_side_by_side():
    groups = [made(3, n, seed=n, weighted=False) for n in (2, 1, 3)]
    joined = fields(join_groups(groups))
    for name, x in joined.items():
        for b in range(3):
            assert torch.equal(x[b], torch.cat([fields(g)[name][b] for g in groups])), name
    assert joined.keys() == fields(groups[0]).keys()
    assert join_groups(groups[:1]) is groups[0]


def test_shifts_of_a_chunk_share_the_weights():
    for weighted in (True, False):
        samples = made(6, 2, weighted=weighted)  # 2 chunks in 3 shifts
        joined = join_shifts(samples, 3)
        assert joined.log_evidence is None and (joined.log_weights is None) != weighted
        for name, x in fields(joined).items():
            every = fields(samples)[name] - (math.log(3) if name == "log_weights" else 0)
            for b, s, n in torch.cartesian_prod(*map(torch.arange, (2, 3, 2))).tolist():
                assert torch.equal(x[b, 2 * s + n], every[3 * b + s, n]), name
    assert join_shifts(samples, 1) is samples
