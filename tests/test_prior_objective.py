"""The prior's loss, and songs encoded in advance."""

import dataclasses
import math

import pytest
import torch

from jukebox_core import audio
from jukebox_core.audio.transposition import room, transpose
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.presets import PRESETS
from jukebox_core.prior.codes import (
    CodeDataset,
    EncodedSong,
    encode_long,
    encode_songs,
    encoder_reach,
)
from jukebox_core.prior.model import AutoregressivePrior
from jukebox_core.prior.objective import PriorObjective
from jukebox_core.vqvae.model import VQVAE

TINY = PRESETS["tiny"]
HOP = TINY.vqvae.hop


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    model = VQVAE(TINY.vqvae)
    latents = model.latents(0.1 * torch.randn(4, 4096))
    picks = torch.randperm(latents.shape[0] * latents.shape[2])[: TINY.vqvae.l_bins]
    bottleneck = model.bottleneck(model.top)
    bottleneck.codebook.copy_(latents.detach().transpose(1, 2).flatten(0, 1)[picks])
    bottleneck.restore_averages()
    return model.eval().requires_grad_(False)


@pytest.fixture
def prior(codec):
    torch.manual_seed(1)
    return AutoregressivePrior(TINY.prior, codec.codebook)


def test_the_loss_is_bits_per_code_of_the_codecs_codes(codec, prior):
    waveforms = 0.1 * torch.randn(3, 64 * HOP)
    output = PriorObjective(codec, prior)(waveforms)
    codes = codec.encode(waveforms)
    probabilities = prior(codes).double().softmax(-1)
    chosen = probabilities.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    bits = -chosen.log2().mean()
    assert output.loss.item() == pytest.approx(bits.item(), rel=1e-5)
    assert output.metrics.keys() == {"bits_per_code"}
    assert torch.equal(output.metrics["bits_per_code"], output.loss.detach())
    assert not output.metrics["bits_per_code"].requires_grad


def test_dropout_is_for_training_alone(codec, prior):
    config = dataclasses.replace(TINY.prior, dropout=0.3)
    dropping = AutoregressivePrior(config, codec.codebook)
    dropping.load_state_dict(prior.state_dict())
    codes = torch.randint(TINY.vqvae.l_bins, (2, 12))
    assert torch.equal(dropping.eval()(codes), prior.eval()(codes))
    dropping.train()
    assert not torch.allclose(dropping(codes), prior(codes), atol=1e-3)
    assert torch.equal(dropping.eval()(codes), prior(codes))


def test_codes_pass_unchanged_and_need_no_codec(codec, prior):
    waveforms = 0.1 * torch.randn(2, 32 * HOP)
    codes = codec.encode(waveforms)
    expected = PriorObjective(codec, prior)(waveforms).loss
    assert torch.equal(PriorObjective(codec, prior)(codes).loss, expected)
    assert torch.equal(PriorObjective(None, prior)(codes).loss, expected)
    with pytest.raises(ValueError, match="float32 batch needs the codec"):
        PriorObjective(None, prior)(waveforms)


def test_the_codec_is_neither_trained_nor_stored(codec, prior):
    objective = PriorObjective(codec, prior).train()
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    objective(0.1 * torch.randn(2, 32 * HOP)).loss.backward()
    assert {n.split(".")[0] for n, _ in objective.named_parameters()} == {"prior"}
    assert {n.split(".")[0] for n in objective.state_dict()} == {"prior"}
    assert not codec.training
    assert all(torch.equal(value, before[name]) for name, value in codec.state_dict().items())
    assert all(p.grad is None for p in codec.parameters())


def test_codes_are_those_of_inference_under_autocast(codec, prior):
    waveforms = 0.1 * torch.randn(2, 64 * HOP)
    expected = codec.encode(waveforms)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(PriorObjective(codec, prior).codes(waveforms), expected)


def test_a_codec_with_other_codes_is_refused(codec):
    other = AutoregressivePrior(dataclasses.replace(TINY.prior, l_bins=64))
    with pytest.raises(ValueError, match="the codec has 32 codes, the prior 64"):
        PriorObjective(codec, other)


def test_windows_of_a_long_waveform_give_the_codes_of_the_whole(codec):
    waveform = 0.1 * torch.randn(300 * HOP + 5)
    whole = codec.encode(waveform[: 300 * HOP].unsqueeze(0))[0]
    for window in (300, 100, 37):
        assert torch.equal(encode_long(codec, waveform, window), whole)


def test_the_encoder_sees_no_further_than_its_reach(codec):
    reach = encoder_reach(TINY.vqvae)
    for sample in (500 * HOP, 500 * HOP + HOP - 1):
        waveform = 0.1 * torch.randn(1, 1000 * HOP)
        changed = waveform.clone()
        changed[0, sample] += 1
        differs = (codec.latents(waveform) != codec.latents(changed)).any(1)[0].nonzero().flatten()
        assert len(differs)
        assert (differs.min() + 1) * HOP >= sample - reach
        assert differs.max() * HOP <= sample + reach


def test_shifted_copies_are_the_codes_of_the_shifted_song(codec, tiny_data):
    tracks = load_manifest(tiny_data).split("train")[:2]
    songs = encode_songs(codec, tracks, "bass", crop=1000, shifts=3)
    for track, song in zip(tracks, songs, strict=True):
        waveform = audio.load(track.sources["bass"])[0][0]
        assert song.codes.shape == (3, len(waveform) // HOP - 1)
        for k in range(3):
            shifted = waveform[k * HOP // 3 :][: song.codes.shape[1] * HOP]
            assert torch.equal(song.codes[k].long(), codec.encode(shifted.unsqueeze(0))[0])
    keys = encode_songs(codec, tracks, "bass", crop=1000, shifts=2, transpose_semitones=1)
    lower, same, higher = keys[:3]
    assert len(keys) == 6 and torch.equal(
        same.codes, encode_songs(codec, tracks, "bass", 1000, 2)[0].codes
    )
    waveform = audio.load(tracks[0].sources["bass"])
    for semitones, song in ((-1, lower), (1, higher)):
        whole = transpose(waveform[0], semitones, room(waveform[0].shape[1], semitones))
        assert song.codes.shape[1] == whole.shape[1] // HOP - 1
        first = whole[:, : song.codes.shape[1] * HOP]
        assert torch.equal(song.codes[0].long(), codec.encode(first)[0])
    with pytest.raises(
        ValueError, match="shifts is 17, expected an integer at least 1 and at most 16"
    ):
        encode_songs(codec, tracks, "bass", 1000, 17)
    with pytest.raises(ValueError, match="no song is as long as a crop of"):
        encode_songs(codec, tracks, "bass", 10**6)


def song(codes, loud):
    power = torch.where(torch.as_tensor(loud), 0.1, 0.0).numpy()
    return EncodedSong(torch.as_tensor(codes, dtype=torch.int32), power)


def test_windows_depend_on_seed_and_index_alone():
    long, short = torch.arange(300).repeat(2, 1), torch.arange(1000, 1100).repeat(2, 1)
    long[1] += 500
    short[1] += 500
    songs = [song(long, [True] * 300), song(short, [True] * 100)]
    items = CodeDataset(songs, 20, HOP, seed=4)
    windows = [items[index] for index in range(400)]
    assert all(torch.equal(items[index], windows[index]) for index in (7, 3))
    assert windows[0].dtype == torch.int64 and windows[0].shape == (1, 20)
    starts = torch.cat(windows)[:, 0]
    assert torch.equal(torch.cat(windows), starts.unsqueeze(1) + torch.arange(20))
    assert (starts >= 1000).float().mean().item() == pytest.approx(0.25, abs=0.07)
    assert (starts % 1000 >= 500).float().mean().item() == pytest.approx(0.5, abs=0.08)
    other = CodeDataset(songs, 20, HOP, seed=5)
    assert not torch.equal(torch.cat([other[index] for index in range(9)]), torch.cat(windows[:9]))
    assert items.samples == 400 * HOP


def test_silent_windows_are_drawn_again():
    loud = [position < 40 for position in range(200)]
    songs = [song(torch.arange(200).unsqueeze(0), loud)]
    starts = [CodeDataset(songs, 20, HOP)[index][0, 0].item() for index in range(60)]
    assert sum(start < 40 for start in starts) >= 58
    every = CodeDataset(songs, 20, HOP, skip_silent=False)
    assert sum(every[index][0, 0].item() < 40 for index in range(60)) < 30


def test_songs_shorter_than_a_window_are_refused():
    songs = [song(torch.arange(10).unsqueeze(0), [True] * 10)]
    with pytest.raises(ValueError, match="windows of 20 codes, the shortest song has 10"):
        CodeDataset(songs, 20, HOP)


def test_an_untrained_prior_knows_nothing(prior):
    codes = torch.randint(0, 32, (4, 100))
    assert PriorObjective(None, prior)(codes).loss.item() == pytest.approx(math.log2(32), rel=0.02)
