"""Upstream checkpoints and tables: read and written back."""

import json
import subprocess
import sys
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from upstream_files import (
    CODEC_HPS,
    PRIOR_HPS,
    D,
    K,
    codec_tensors,
    convert,
    prior_tensors,
    refused,
    save_checkpoint,
)

from jukebox_core import audio
from jukebox_core.checkpoints import (
    WEIGHTS,
    fingerprint,
    load_codec,
    load_meta,
    load_prior,
    save_model,
)
from jukebox_core.config import PriorConfig, VQVAEConfig
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.upstream.checkpoints import read_checkpoint
from jukebox_core.upstream.tables import (
    CountTable,
    read_counts,
    read_sums,
    write_counts,
    write_sums,
)
from jukebox_core.vqvae.model import VQVAE
from lass.counts import count_triples, load_counts, save_counts, symmetrise
from lass.likelihood import CountLikelihood
from lass.upstream import read_upstream_counts, write_upstream_counts
from lqvae.sums import code_sums, load_sums, save_sums
from scripts.separate import main as separate

CONFIG = VQVAEConfig(
    levels=2,
    downs_t=(2, 1),
    strides_t=(2, 3),
    l_bins=K,
    emb_width=D,
    l_mu=0.98,
    width=4,
    depth=2,
    m_conv=0.5,
    multipliers=(2, 1),
)


def native_codec(folder):
    torch.manual_seed(0)
    config = replace(CONFIG, dilation_cycle=1)
    codec = VQVAE(config).train()
    codec(torch.randn(2, 12 * 16))  # codebooks, and averages that are not what a file implies
    codec(torch.randn(2, 12 * 16))
    meta = {"kind": "vqvae", "config": asdict(config), "step": 3, "preset": "tiny"}
    save_model(folder, codec, meta)
    return folder


def native_prior(folder, embedding, codebook=None, dropout=0.1):
    torch.manual_seed(1)
    config = PriorConfig(
        n_ctx=16,
        l_bins=K,
        width=8,
        depth=4,
        heads=2,
        blocks=4,
        attn_order=9,
        emb_width=D,
        embedding=embedding,
        dropout=dropout,
    )
    prior = AutoregressivePrior(config, codebook)
    save_model(folder, prior, {"kind": "prior", "config": asdict(config), "source": "bass"})
    return folder


def same_run(first, second):
    assert (first / WEIGHTS).read_bytes() == (second / WEIGHTS).read_bytes()
    assert load_meta(first) == load_meta(second)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("module", [False, True])
def test_codec(tmp_path, module, legacy):
    tensors = codec_tensors()
    path = save_checkpoint(tmp_path / "c.pth.tar", tensors, CODEC_HPS, module=module, legacy=legacy)
    assert convert("codec", path, tmp_path / "codec") == 0
    codec = load_codec(tmp_path / "codec")
    assert codec.config == CONFIG
    name = "encoders.1.level_blocks.1.model.0.1.model.1.model.3.weight"
    ours = codec.encoder(1).stages[1][0][1][1].pointwise.weight
    assert torch.equal(ours, tensors[name])
    assert torch.equal(codec.codebook, tensors["bottleneck.level_blocks.1.k"])
    assert torch.isfinite(codec.decode(codec.encode(torch.randn(1, 120)))).all()
    meta = load_meta(tmp_path / "codec")
    assert meta["step"] == 7 and meta["upstream"]["hps"]["bandwidth"]["spec"] == 30.0
    # Its averages start so that training on does not restart every code at once.
    bottleneck = codec.bottleneck(1).train()
    bottleneck(torch.randn(1, D, 4))
    assert (bottleneck.codebook == tensors["bottleneck.level_blocks.1.k"]).float().mean() > 0.5


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("module", [False, True])
def test_prior(tmp_path, table, module):
    tensors = prior_tensors(table=table)
    path = save_checkpoint(tmp_path / "p.pth.tar", tensors, PRIOR_HPS, module=module)
    assert convert("prior", path, tmp_path / "prior", "--sources", "bass") == 0
    prior = load_prior(tmp_path / "prior")
    expected = PriorConfig(
        n_ctx=16,
        l_bins=K,
        width=8,
        depth=3,
        heads=2,
        blocks=4,
        m_attn=0.25,
        m_mlp=2.0,
        embedding="table" if table else "codebook",
        emb_width=64 if table else D,
    )
    assert prior.config == expected
    weight = tensors["prior.transformer._attn_mods.2.mlp.c_fc.w"]
    assert torch.equal(prior.blocks[2].mlp.up.weight, weight.T)
    assert torch.equal(prior.head.weight, tensors["prior.x_out.weight"])
    if not table:
        assert torch.equal(prior.embed.codebook, codec_tensors()["bottleneck.level_blocks.1.k"])
    assert prior(torch.zeros(1, 5, dtype=torch.int64)).shape == (1, 5, K)
    assert load_meta(tmp_path / "prior")["source"] == "bass"


@pytest.mark.parametrize("kind", ["codec", "table", "codebook"])
def test_upstream_to_native_and_back_keeps_every_tensor_and_value(tmp_path, kind):
    codec = kind == "codec"
    tensors = codec_tensors() if codec else prior_tensors(table=kind == "table")
    hps = CODEC_HPS if codec else PRIOR_HPS
    path = save_checkpoint(tmp_path / "a.pth.tar", tensors, hps)
    what = "codec" if codec else "prior"
    assert convert(what, path, tmp_path / "run") == 0
    assert convert(what, tmp_path / "run", tmp_path / "b.pth.tar", "--back") == 0
    content = torch.load(tmp_path / "b.pth.tar", weights_only=True)
    assert content["model"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(content["model"][name], tensor), name
    assert content["step"] == 7
    for name, value in hps.items():
        assert content["hps"][name] == value
    assert isinstance(content["hps"].get("downs_t", ()), tuple)


def test_native_codec_there_and_back(tmp_path):
    run = native_codec(tmp_path / "codec")
    assert convert("codec", run, tmp_path / "c.pth.tar", "--back") == 0
    assert convert("codec", tmp_path / "c.pth.tar", tmp_path / "again") == 0
    same_run(run, tmp_path / "again")


def test_native_prior_with_a_table_there_and_back(tmp_path):
    run = native_prior(tmp_path / "prior", "table")
    assert convert("prior", run, tmp_path / "p.pth.tar", "--back") == 0
    content = torch.load(tmp_path / "p.pth.tar", weights_only=True)
    assert torch.equal(
        content["model"]["prior.x_emb.weight"], content["model"]["prior.x_out.weight"]
    )
    assert convert("prior", tmp_path / "p.pth.tar", tmp_path / "again") == 0
    same_run(run, tmp_path / "again")


def test_native_prior_of_codebook_vectors_there_and_back(tmp_path, capsys):
    codec = native_codec(tmp_path / "codec")
    run = native_prior(tmp_path / "prior", "codebook", load_codec(codec).codebook)
    out = tmp_path / "p.pth.tar"
    assert "lacks the codebooks of the lower levels" in refused(capsys, "prior", run, out, "--back")
    assert convert("prior", run, out, "--back", "--vqvae", codec) == 0
    model = torch.load(out, weights_only=True)["model"]
    for level in range(2):
        stored = model[f"prior.bottleneck.level_blocks.{level}.k"]
        assert torch.equal(stored, load_codec(codec).bottleneck(level).codebook)
    assert convert("prior", out, tmp_path / "again") == 0
    same_run(run, tmp_path / "again")
    assert convert("prior", tmp_path / "again", tmp_path / "q.pth.tar", "--back") == 0
    other = native_prior(tmp_path / "other", "codebook", torch.ones(K, D))
    said = refused(capsys, "prior", other, tmp_path / "o.pth.tar", "--back", "--vqvae", codec)
    assert "another codec" in said


def test_prior_remembers_its_codec(tmp_path, capsys):
    path = save_checkpoint(tmp_path / "c.pth.tar", codec_tensors(), CODEC_HPS)
    assert convert("codec", path, tmp_path / "codec") == 0
    tensors = prior_tensors(table=False)
    path = save_checkpoint(tmp_path / "p.pth.tar", tensors, PRIOR_HPS)
    assert convert("prior", path, tmp_path / "prior", "--vqvae", tmp_path / "codec") == 0
    identity = fingerprint(tmp_path / "codec")
    load_prior(tmp_path / "prior", codec_fingerprint=identity)
    tensors["prior.bottleneck.level_blocks.1.k"] = torch.ones(K, D)
    path = save_checkpoint(tmp_path / "q.pth.tar", tensors, PRIOR_HPS)
    said = refused(capsys, "prior", path, tmp_path / "no", "--vqvae", tmp_path / "codec")
    assert "was trained on another codec" in said


def test_half_precision_is_read_as_float32(tmp_path):
    tensors = OrderedDict((n, t.half()) for n, t in prior_tensors(table=True).items())
    path = save_checkpoint(tmp_path / "p.pth.tar", tensors, PRIOR_HPS)
    assert convert("prior", path, tmp_path / "prior") == 0
    weight = load_prior(tmp_path / "prior").positions
    assert torch.equal(weight, tensors["prior.pos_emb.pos_emb"].float())


def test_missing_hps_can_be_given(tmp_path, capsys):
    hps = {name: value for name, value in CODEC_HPS.items() if name != "sr"}
    path = save_checkpoint(tmp_path / "c.pth.tar", codec_tensors(), hps)
    assert "its hps lack sr" in refused(capsys, "codec", path, tmp_path / "no")
    (tmp_path / "hps.json").write_text('{"sr": 44100}')
    assert convert("codec", path, tmp_path / "codec", "--hps", tmp_path / "hps.json") == 0
    assert load_codec(tmp_path / "codec").config.sample_rate == 44_100
    (tmp_path / "hps.json").write_text('{"sr": 44100, "width": 5}')
    said = refused(capsys, "codec", path, tmp_path / "no", "--hps", tmp_path / "hps.json")
    assert "has width 4 in its hps, not 5" in said
    (tmp_path / "hps.json").write_text("sr")
    said = refused(capsys, "codec", path, tmp_path / "no", "--hps", tmp_path / "hps.json")
    assert "is not JSON" in said


def test_symmetric_counts_there_and_back(tmp_path):
    codes = np.random.default_rng(0).integers(0, K, (3, 400))
    counts = symmetrise(count_triples(K, *codes))
    coords = torch.from_numpy(np.stack([counts.first, counts.second, counts.mixture]).astype(int))
    table = CountTable(coords, torch.from_numpy(counts.counts), K)
    write_counts(tmp_path / "a.npz", table)
    with np.load(tmp_path / "a.npz") as file:
        assert sorted(file.files) == ["coords", "data", "fill_value", "shape"]
        assert file["shape"].tolist() == [K, K, K] and file["coords"].dtype == np.int64
    assert convert("counts", tmp_path / "a.npz", tmp_path / "c.safetensors") == 0
    native, _ = load_counts(tmp_path / "c.safetensors")
    assert all(np.array_equal(x, y) for x, y in zip(native[1:], counts[1:], strict=True))
    assert convert("counts", tmp_path / "c.safetensors", tmp_path / "b.npz", "--back") == 0
    first, second = read_counts(tmp_path / "a.npz"), read_counts(tmp_path / "b.npz")
    assert torch.equal(first.coords, second.coords) and torch.equal(first.counts, second.counts)


def test_class_ordered_counts_there_and_back(tmp_path):
    codes = np.random.default_rng(0).integers(0, K, (3, 400))
    counts = count_triples(K, *codes)
    metadata = {"sources": "bass drums", "codec": "abc", "alpha": "0.5 0.5"}
    save_counts(tmp_path / "a.safetensors", counts, metadata)
    assert convert("counts", tmp_path / "a.safetensors", tmp_path / "c.npz", "--back") == 0
    table = read_counts(tmp_path / "c.npz")  # what upstream sees: both orders
    assert int(table.counts.sum()) == 2 * 400
    assert convert("counts", tmp_path / "c.npz", tmp_path / "b.safetensors") == 0
    again, stored = load_counts(tmp_path / "b.safetensors")
    assert all(np.array_equal(x, y) for x, y in zip(again[1:], counts[1:], strict=True))
    assert all(x.dtype == y.dtype for x, y in zip(again[1:], counts[1:], strict=True))
    assert stored == load_counts(tmp_path / "a.safetensors")[1]


def test_imported_counts_score_like_the_counts_themselves(tmp_path):
    codes = np.random.default_rng(0).integers(0, K, (3, 400))
    counts = count_triples(K, *codes)
    save_counts(tmp_path / "a.safetensors", counts, {})
    assert convert("counts", tmp_path / "a.safetensors", tmp_path / "c.npz", "--back") == 0
    with np.load(tmp_path / "c.npz") as file:  # as upstream writes it
        np.savez(
            tmp_path / "d.npz", **{n: file[n] for n in ("data", "coords", "shape", "fill_value")}
        )
    imported, _ = read_upstream_counts(tmp_path / "d.npz")
    for code in range(K):
        ours, theirs = (CountLikelihood(c).scores(code) for c in (counts, imported))
        assert torch.equal(ours.pairs, theirs.pairs)
        torch.testing.assert_close(ours.values, theirs.values)


def test_sums_there_and_back(tmp_path, capsys):
    path = save_checkpoint(tmp_path / "c.pth.tar", codec_tensors(), CODEC_HPS)
    assert convert("codec", path, tmp_path / "codec") == 0
    table = code_sums(load_codec(tmp_path / "codec").codebook, (0.6, 0.4))
    identity = fingerprint(tmp_path / "codec")
    save_sums(tmp_path / "a.safetensors", table, identity, (0.6, 0.4))
    assert convert("sums", tmp_path / "a.safetensors", tmp_path / "s.pt", "--back") == 0
    upstream = torch.load(tmp_path / "s.pt", weights_only=True)
    assert upstream.dtype == torch.int64 and upstream.shape == (1, K * K)
    assert upstream[0, 3 * K + 5] == table[3, 5]
    flags = ("--vqvae", tmp_path / "codec", "--alpha", 0.6, 0.4)
    assert convert("sums", tmp_path / "s.pt", tmp_path / "b.safetensors", *flags) == 0
    assert torch.equal(load_sums(tmp_path / "b.safetensors", identity), table)
    assert torch.equal(read_sums(tmp_path / "s.pt"), table)
    torch.save(torch.zeros(1, 9, dtype=torch.int64), tmp_path / "small.pt")
    said = refused(capsys, "sums", tmp_path / "small.pt", tmp_path / "no", *flags)
    assert "over 3 codes, the codec" in said


def test_hps_become_plain_values(tmp_path):
    path = save_checkpoint(
        tmp_path / "c", codec_tensors(), CODEC_HPS | {"inf": float("inf"), "s": {1, 2}, 3: None}
    )
    hps = read_checkpoint(path).hps
    json.dumps(hps, allow_nan=False)
    assert type(hps["l_mu"]) is float and type(hps["depth"]) is int
    assert hps["vqvae_reverse_decoder_dilation"] is True and hps["3"] is None


MEASURE = r"""
import re, sys
from scripts.convert_upstream import main
from scripts.separate import main as separate
def peak():
    # getrusage would also count what the parent held when it started this process.
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024
import torch._dynamo  # PyTorch imports it on the way
before = peak()
assert main(sys.argv[1:]) == 0
print(before, peak())
"""

MAKE = """
import sys, torch
from jukebox_core.presets import PRESETS
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.upstream.layout import upstream_tensors, prior_hps, prior_names
with torch.device("meta"):
    prior = AutoregressivePrior(PRESETS["paper"].prior)
state = {n: torch.full(t.shape, 0.5) for n, t in prior.state_dict().items()}
model = upstream_tensors(state, prior_names(prior.config, top=0), turn=True)
torch.save({"hps": prior_hps(prior.config), "model": model, "opt": {}, "step": 1}, sys.argv[1])
"""


@pytest.mark.slow
def test_converting_the_paper_size_prior_fits_in_three_times_its_file(tmp_path):
    """160 M parameters: a file of 650 MB."""

    def run(code, *arguments):
        root = Path(__file__).parent.parent
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        return done.stdout

    path, out, back = (tmp_path / name for name in ("p.pth.tar", "prior", "q.pth.tar"))
    run(MAKE, path)
    size = path.stat().st_size
    assert size > 640e6
    flags = ("--kind", "prior", "--input", path, "--output", out)
    libraries, there = map(int, run(MEASURE, *flags).split()[-2:])
    path.unlink()
    flags = ("--kind", "prior", "--input", out, "--output", back, "--back")
    back_again = int(run(MEASURE, *flags).split()[-1])
    print(f"file {size / 1e6:.0f} MB, peak {there / 1e6:.0f} MB, back {back_again / 1e6:.0f} MB")
    assert there < 3 * size and back_again < 3 * size
    # The libraries take what they take: a CUDA build of torch half a gigabyte more than another.
    assert there - libraries < 1.1 * size and back_again - libraries < 1.1 * size


@pytest.mark.parametrize("method", ["lass", "lqvae", "hybrid"])
def test_converted_models_separate(tmp_path, method):
    """From four upstream files to stems."""
    family = tmp_path / "models" / ("reconstruction" if method == "lass" else "linearisation")
    codec = family / "vqvae"
    path = save_checkpoint(tmp_path / "c.pth.tar", codec_tensors(), CODEC_HPS)
    assert convert("codec", path, codec) == 0
    for seed, source in enumerate(("bass", "drums")):
        tensors = prior_tensors(table=method == "lass", seed=seed)
        path = save_checkpoint(tmp_path / f"{source}.pth.tar", tensors, PRIOR_HPS)
        flags = ("--vqvae", codec, "--sources", source)
        assert convert("prior", path, family / f"prior_{source}", *flags) == 0
    if method == "lqvae":
        write_sums(tmp_path / "s.pt", code_sums(load_codec(codec).codebook))
        table = family / "sums.safetensors"
        assert convert("sums", tmp_path / "s.pt", table, "--vqvae", codec) == 0
    else:
        counts = symmetrise(count_triples(K, *np.random.default_rng(0).integers(0, K, (3, 900))))
        write_upstream_counts(tmp_path / "sum_dist_9.npz", counts)
        flags = ("--vqvae", codec, "--sources", "bass", "drums")
        counted = family / "counts.safetensors"
        assert convert("counts", tmp_path / "sum_dist_9.npz", counted, *flags) == 0
    audio.save(tmp_path / "song.wav", 0.1 * torch.randn(2, 1000), 22_050)
    flags = ["--method", method, "--models", str(tmp_path / "models"), "--candidates", "2"]
    flags += ["--output", str(tmp_path / "out"), "--device", "cpu", str(tmp_path / "song.wav")]
    if method == "hybrid":  # upstream has no code sums, which the Gaussian needs
        flags += ["--gaussian", "False", "--smoothing", "0"]
    assert separate(flags) == 0
    stems = [audio.load(tmp_path / "out/song" / f"{name}.wav")[0] for name in ("bass", "drums")]
    mixture = audio.load(tmp_path / "song.wav")[0]
    torch.testing.assert_close(stems[0] + stems[1], mixture, atol=1e-4, rtol=1e-4)
