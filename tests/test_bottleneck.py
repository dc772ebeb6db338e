"""The EMA codebook against the recurrences written out in NumPy."""

import numpy as np
import pytest
import torch

from jukebox_core.vqvae.bottleneck import Bottleneck

K, D = 7, 3


def make(threshold=1.0, usage=5.0):
    torch.manual_seed(0)
    bottleneck = Bottleneck(K, D, mu=0.9, revival_threshold=threshold)
    bottleneck.codebook.normal_()
    bottleneck.restore_averages(usage)
    return bottleneck


def test_quantises_to_the_nearest_code_straight_through():
    bottleneck = make().eval()
    x = torch.randn(2, D, 5, requires_grad=True)
    out = bottleneck(x)
    flat = x.detach().transpose(1, 2).reshape(-1, D).numpy()
    book = bottleneck.codebook.numpy()
    nearest = ((flat[:, None] - book) ** 2).sum(-1).argmin(1)
    assert (out.codes.flatten().numpy() == nearest).all()
    np.testing.assert_allclose(
        out.latents.detach().transpose(1, 2).reshape(-1, D).numpy(), book[nearest], atol=1e-6
    )
    assert out.commit.item() == pytest.approx(((book[nearest] - flat) ** 2).mean(), rel=1e-5)
    assert not out.latents.requires_grad  # in evaluation only `commit` reaches the encoder
    torch.testing.assert_close(bottleneck.encode(x), out.codes)
    torch.testing.assert_close(bottleneck.decode(out.codes), out.latents.detach())
    trained = bottleneck.train()(x)
    torch.testing.assert_close(trained.latents, out.latents)
    (3.0 * trained.latents.sum()).backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 3.0))


def test_codebook_follows_the_exponential_averages():
    bottleneck = make(threshold=0.0)
    sums, counts = bottleneck.ema_sum.numpy().copy(), bottleneck.ema_count.numpy().copy()
    for step in range(3):
        x = torch.randn(2, D, 6, generator=torch.Generator().manual_seed(step))
        codes = bottleneck.eval()(x).codes.flatten().numpy()
        bottleneck.train()(x)
        flat = x.transpose(1, 2).reshape(-1, D).numpy()
        for k in range(K):
            sums[k] = 0.9 * sums[k] + 0.1 * flat[codes == k].sum(0)
            counts[k] = 0.9 * counts[k] + 0.1 * (codes == k).sum()
        np.testing.assert_allclose(bottleneck.ema_count.numpy(), counts, rtol=1e-5)
        np.testing.assert_allclose(bottleneck.codebook.numpy(), sums / counts[:, None], rtol=1e-4)


def test_rare_codes_restart_at_latents_of_the_batch():
    bottleneck = make(threshold=1.0, usage=1.0)
    x = torch.randn(2, D, 6)
    metrics = bottleneck.train()(x, torch.Generator().manual_seed(1)).metrics
    flat = {tuple(v) for v in x.transpose(1, 2).reshape(-1, D).tolist()}
    dead = bottleneck.ema_count < 1.0
    assert dead.any() and (~dead).any()
    assert metrics["usage"].item() == (~dead).sum().item()
    assert all(tuple(v) in flat for v in bottleneck.codebook[dead].tolist())


def test_first_batch_initialises_the_codebook():
    bottleneck = Bottleneck(K, D, mu=1.0, revival_threshold=0.0)  # mu 1: nothing moves afterwards
    x = torch.randn(4, D, 6)
    bottleneck.train()(x, torch.Generator().manual_seed(0))
    latents = {tuple(v) for v in x.transpose(1, 2).reshape(-1, D).tolist()}
    assert {tuple(v) for v in bottleneck.codebook.tolist()} <= latents
    few = Bottleneck(K, D, mu=1.0, revival_threshold=0.0)
    few.train()(x[:1, :, :2], torch.Generator().manual_seed(0))  # 2 latents for 7 codes: tiled
    distance = torch.cdist(few.codebook, x[0, :, :2].T).min(1).values
    assert (distance < 0.1).all() and len(set(map(tuple, few.codebook.tolist()))) == K


def test_same_generator_same_restarts():
    books = []
    for _ in range(2):
        bottleneck = make(threshold=2.0, usage=1.0)
        bottleneck.train()(torch.ones(1, D, 9).cumsum(2), torch.Generator().manual_seed(4))
        books.append(bottleneck.codebook)
    torch.testing.assert_close(*books, rtol=0, atol=0)
