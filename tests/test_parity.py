"""Parity with tensors recorded from upstream, and the program that checks it."""

import json
import shutil

import numpy as np
import pytest
import torch
from parity_fixtures import SHARED, needs_fixtures, one_thread, upstream_steps  # noqa: F401
from upstream_files import CODEC_HPS, PRIOR_HPS, K, codec_tensors, prior_tensors

from jukebox_core.prior.objective import PriorObjective
from jukebox_core.upstream.layout import (
    build_codec,
    build_prior,
    codec_config,
    prior_config,
    prior_names,
    upstream_tensors,
    without_prefixes,
)
from jukebox_core.upstream.layout import codec_tensors as native_codec_tensors
from jukebox_core.upstream.layout import prior_tensors as native_prior_tensors
from scripts.check_parity import main, run
from scripts.check_parity.fixtures import (
    Row,
    cells,
    find_fixtures,
    relative_error,
    run_fixture,
)

RECORDED = [] if SHARED is None else find_fixtures(SHARED / "fixtures")


@needs_fixtures
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded(path):
    rows = run_fixture(path)
    assert rows
    assert [row for row in rows if not row.ok] == []


@needs_fixtures
def test_all_recorded_fixtures_are_there():
    names = {path.stem for path in RECORDED}
    assert {"vqvae_forward", "lqvae_loss", "beam_search", "train_traj_prior_lass"} <= names
    assert len(names) >= 24


@needs_fixtures
def test_trajectories_whose_start_is_not_found_are_held_to_their_end(tmp_path):
    """Without the other side-cars there is no seed to start from."""
    for kind in ("vqvae_lqvae", "prior_lass"):
        for suffix in (".npz", ".json"):
            shutil.copy(SHARED / "fixtures" / f"train_traj_{kind}{suffix}", tmp_path)
    loss = json.loads((SHARED / "fixtures" / "vqvae_loss.json").read_text())["loss_config"]
    (tmp_path / "vqvae_loss.json").write_text(json.dumps({"loss_config": loss}))
    for kind in ("vqvae_lqvae", "prior_lass"):
        rows = run_fixture(tmp_path / f"train_traj_{kind}.npz")
        assert all(row.ok for row in rows)
        assert "loss after the last step" in [row.function for row in rows]


def write(folder, name, info, arrays):
    np.savez(folder / f"{name}.npz", **{k: np.asarray(v) for k, v in arrays.items()})
    (folder / f"{name}.json").write_text(json.dumps(info))


def codec_fixture(folder):
    """A codec of other sizes than the recorded ones: two levels, strides 2 and 3."""
    tensors = codec_tensors()
    config = codec_config(CODEC_HPS, tensors)
    codec = build_codec(native_codec_tensors(tensors, config, 1.0), config)
    audio = torch.randn(2, 12 * 20, generator=torch.Generator().manual_seed(0))
    arrays = {f"sd/{name}": tensor for name, tensor in tensors.items()}
    arrays["in/x"] = audio.unsqueeze(-1)
    for level in range(2):
        latents = codec.latents(audio, level)
        for stage, output in enumerate(codec.encoder(level).stage_outputs(audio.unsqueeze(1))):
            arrays[f"out/enc_level{level}_stage{stage}"] = output
        codes = codec.encode(audio, level)
        squared = torch.cdist(latents.transpose(1, 2), codec.bottleneck(level).codebook).square()
        best = squared.topk(2, largest=False).values
        arrays[f"out/z_level{level}"] = codes
        arrays[f"out/code_margin_level{level}"] = best[..., 1] - best[..., 0]
        arrays[f"out/dequantised_level{level}"] = codec.bottleneck(level).decode(codes)
        arrays[f"out/decoded_from_level{level}"] = codec.decode(codes, level).unsqueeze(-1)
    hps = {name: np.asarray(value).tolist() for name, value in CODEC_HPS.items() if name != "sr"}
    write(folder, "vqvae_forward", {"config": hps}, arrays)


def tiny_prior(table):
    tensors = without_prefixes(prior_tensors(table=table))
    tensors = {name: 0.1 * tensor for name, tensor in tensors.items()}
    config = prior_config(PRIOR_HPS, tensors)
    return build_prior(native_prior_tensors(tensors, config), config).requires_grad_(True)


def named(prior):
    top = 0 if prior.config.embedding == "table" else 1
    tensors = upstream_tensors(prior.state_dict(), prior_names(prior.config, top), turn=True)
    if top:
        tensors["bottleneck.level_blocks.0.k"] = torch.zeros(K, 6)
    return {f"prior.{name}": tensor.clone() for name, tensor in tensors.items()}


PRIOR_INFO = {
    name: np.asarray(value).tolist()
    for name, value in PRIOR_HPS.items()
    if name not in ("width", "depth", "l_bins", "prior_width", "prior_depth", "attn_order")
} | {"width": 8, "depth": 3, "bins": K}


def trajectory_fixture(folder):
    """A trajectory that records its start as it was."""
    prior = tiny_prior(table=False).train()
    codes = torch.randint(K, (2, 16), generator=torch.Generator().manual_seed(0))
    train = {"lr": 0.01, "lr_warmup": 2.0, "clip": 0.1, "betas": [0.9, 0.99], "eps": 1e-8}
    train["weight_decay"] = 0.05
    arrays = {f"sd_before/{name}": tensor for name, tensor in named(prior).items()}
    steps = upstream_steps(PriorObjective(None, prior), codes, train, 4)
    arrays |= {f"sd_after/{name}": tensor for name, tensor in named(prior).items()}
    arrays["in/z"] = codes
    info = {"config": PRIOR_INFO, "fork": "lqvae", "train": train, "steps": steps}
    write(folder, "train_traj_prior_lqvae", info, arrays)


@pytest.fixture
def folder(tmp_path):
    codec_fixture(tmp_path)
    trajectory_fixture(tmp_path)
    return tmp_path


def test_other_sizes_are_read_from_the_side_cars(folder, capsys):
    output, text = folder / "out" / "p.json", folder / "out" / "p.md"
    flags = ["--fixtures", str(folder), "--output", str(output), "--markdown", str(text)]
    assert main(flags) == 0
    said = capsys.readouterr().out
    assert "2 fixtures" in said and "0 out of tolerance" in said
    assert "start" not in [row["function"] for row in json.loads(output.read_text())["rows"]]
    assert json.loads(output.read_text())["ok"] is True
    assert "| vqvae_forward | `VQVAE.encode` | 0 differ | exact | ok |" in text.read_text()
    assert main(["--fixtures", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_a_changed_output_fails(folder, capsys):
    with np.load(folder / "vqvae_forward.npz") as file:
        arrays = dict(file)
    arrays["out/decoded_from_level1"] = arrays["out/decoded_from_level1"] * np.float32(1.001)
    np.savez(folder / "vqvae_forward.npz", **arrays)
    assert main(["--fixtures", str(folder)]) == 1
    said = capsys.readouterr()
    assert said.err == "error: out of tolerance: vqvae_forward VQVAE.decode\n"
    assert "FAIL" in said.out


def test_a_code_that_is_clearly_further_fails_and_a_tie_does_not(folder):
    with np.load(folder / "vqvae_forward.npz") as file:
        arrays = dict(file)
    codes = arrays["out/z_level1"]
    arrays["out/z_level1"] = np.where(np.arange(codes.size).reshape(codes.shape), codes, 0)
    changed = codes.flat[0] != 0
    np.savez(folder / "vqvae_forward.npz", **arrays)
    rows = {row.function: row for row in run(folder)}
    assert changed and not rows["VQVAE.encode"].ok
    arrays["out/code_margin_level1"][0, 0] = 1e-5
    np.savez(folder / "vqvae_forward.npz", **arrays)
    rows = {row.function: row for row in run(folder)}
    assert rows["VQVAE.encode"].ok and "1 of" in rows["VQVAE.encode"].note


def test_missing_tensors_unknown_fixtures_and_empty_folders_fail(folder, capsys):
    write(folder, "what_is_this", {}, {"x": 1})
    with np.load(folder / "vqvae_forward.npz") as file:
        arrays = {k: v for k, v in file.items() if k != "out/z_level0"}
    np.savez(folder / "vqvae_forward.npz", **arrays)
    assert main(["--fixtures", str(folder)]) == 1
    said = capsys.readouterr()
    assert "no check for this fixture" in said.out
    assert "vqvae_forward.npz has no tensor out/z_level0" in said.out
    (folder / "empty").mkdir()
    assert main(["--fixtures", str(folder / "empty")]) == 1
    assert "holds no fixture" in capsys.readouterr().err
    assert main(["--fixtures", str(folder / "nothing")]) == 1
    assert "there is no folder of fixtures" in capsys.readouterr().err


def test_relative_error():
    assert relative_error([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert relative_error([float("-inf"), 2.0], [float("-inf"), 2.0]) == 0
    assert relative_error([0.0, 2.0], [float("-inf"), 2.0]) == float("inf")
    assert relative_error([float("nan")], [1.0]) == float("inf")
    assert relative_error([1.0], [1.0, 1.0]) == float("inf")
    assert relative_error([0.0], [0.0]) == 0
    assert relative_error([1.5], [2.0], slack=0.5) == 0


def test_what_is_not_implemented_is_listed_and_no_failure():
    row = cells([Row("prior_orders", "order6", None, None, True, "why")])[0]
    assert row == ("prior_orders", "`order6`", "not implemented", "-", "-", "why")
