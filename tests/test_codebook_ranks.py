"""Two processes on half batches keep the codebook of one process on whole ones."""

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from jukebox_core.vqvae.bottleneck import Bottleneck

ITEMS, WIDTH, STEPS, CALLS = 4, 5, 6, 8


def latents(call):
    """[B, D, T]: clusters that drift, so that codes die and restart."""
    generator = torch.Generator().manual_seed(call)
    return torch.randn(ITEMS, WIDTH, STEPS, generator=generator) + 0.2 * call


def follow(n_codes, rank=0, ranks=1):
    """The bottleneck after some batches, of which this rank has every `ranks`-th item."""
    bottleneck = Bottleneck(n_codes, WIDTH, 0.6).train()
    generator = torch.Generator().manual_seed(5)
    restarted = 0.0
    for call in range(CALLS):
        before = bottleneck.codebook.clone()
        found = bottleneck(latents(call)[rank::ranks], generator)
        alive = found.metrics["usage"].item()
        restarted += n_codes - alive
        assert not torch.equal(before, bottleneck.codebook)
    return {**bottleneck.state_dict(), "restarted": torch.tensor(restarted)}


def one_of_two(rank, folder, n_codes):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.save(follow(n_codes, rank, 2), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("n_codes", (8, 40), ids=("enough latents", "tiled with noise"))
def test_two_processes_keep_the_codebook_of_one(tmp_path, n_codes):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path), n_codes), nprocs=2)
    whole = follow(n_codes)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert whole["restarted"] > 0
    for name, value in whole.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-6)
