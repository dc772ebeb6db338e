"""The neural likelihood: its network, its training, and the methods that use it."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hybrid
from jukebox_core import audio as audio_io
from jukebox_core.checkpoints import load_codec, load_meta
from jukebox_core.config import NeuralLikelihoodConfig
from jukebox_core.datasets.batches import collate
from jukebox_core.datasets.crops import CropDataset
from jukebox_core.datasets.manifest import load_manifest
from jukebox_core.neural.likelihood import ScaledNeuralLikelihood
from jukebox_core.neural.model import FLOOR, NeuralLikelihood, load_neural_likelihood
from jukebox_core.neural.objective import NeuralLikelihoodObjective
from jukebox_core.presets import PRESETS
from jukebox_core.separation.settings import Settings
from jukebox_core.training.tracking import read_metrics
from jukebox_core.vqvae.model import VQVAE
from lass import load_neural_separator
from scripts import ablate, demo, separate, train_likelihood, train_prior
from scripts._methods import METHODS, PUBLISHED_METHODS, default_methods, method_of
from scripts._training import CodecFlags
from scripts.ablate.rows import estimators, rows
from tests.conftest import RATE
from tests.test_train_scripts import error_of

TINY = PRESETS["tiny"].neural


def make_network(seed=0, sources=("bass", "drums"), **changes):
    torch.manual_seed(seed)
    alpha = dict.fromkeys(sources, 1 / len(sources))
    network = NeuralLikelihood(NeuralLikelihoodConfig(**{**vars(TINY), **changes}), alpha)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return network.eval()


def flags_of(codec, data, output, *more):
    common = ("--preset", "tiny", "--device", "cpu", "--wandb", "disabled")
    paths = ("--vqvae", str(codec), "--data", str(data), "--output", str(output))
    return [*paths, *common, *more]


@pytest.mark.filterwarnings("ignore:Empty filters")
@pytest.mark.parametrize("n_fft", (TINY.n_fft, TINY.hop // 2))
def test_frames_and_spectra_are_centred_on_their_codes(n_fft):
    """By hand: the waveform and both spectrograms of a code, from slices of the padded mixture."""
    network, hop = make_network(n_fft=n_fft), TINY.hop
    mixture = torch.randn(1, 10 * hop, generator=torch.Generator().manual_seed(1))
    latents = torch.randn(1, TINY.emb_width, 10)
    fine, long = network._features(mixture, latents)
    frames = network._frames(mixture)

    def around(centre, size):
        padded = torch.nn.functional.pad(mixture[0], (size, size))
        return padded[size + centre - size // 2 : size + centre - size // 2 + size]

    def log_mel(frame, filters):
        power = torch.fft.rfft(frame * torch.hann_window(len(frame))).abs().square()
        return (power @ filters / len(frame) + FLOOR).log()

    for code in (0, 3, 9):
        centre = code * hop + hop // 2
        torch.testing.assert_close(frames[0, code], around(centre, TINY.taps * hop))
        expected = log_mel(around(centre, n_fft), network._mels)
        torch.testing.assert_close(fine[0, code, : TINY.mels], expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(fine[0, code, TINY.mels :], latents[0, :, code])
    assert long.shape[1] == 3  # 10 codes in steps of 4
    for step in (0, 1, 2):
        centre = 4 * step * hop + 2 * hop
        expected = log_mel(around(centre, TINY.long_n_fft), network._long_mels)
        torch.testing.assert_close(long[0, step], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", (1, 7, 8))
def test_log_probabilities_are_normalised_for_any_length_and_any_sources(steps):
    network = make_network(sources=("bass", "drums", "piano"))
    mixture, latents = torch.randn(2, steps * TINY.hop), torch.randn(2, TINY.emb_width, steps)
    log_q = network(mixture, latents)
    assert tuple(log_q) == ("bass", "drums", "piano")
    for values in log_q.values():
        assert values.shape == (2, steps, TINY.l_bins)
        torch.testing.assert_close(values.exp().sum(-1), torch.ones(2, steps))


def test_it_sees_as_far_as_its_reach_and_no_further():
    network = make_network(coarse_depth=2, depth=2)
    steps, at = 128, 64
    latents = torch.randn(1, TINY.emb_width, steps)
    mixture = torch.randn(1, steps * TINY.hop)
    moved = latents.clone()
    moved[:, :, at] += 1
    one, two = (network(mixture, x)["bass"][0] for x in (latents, moved))
    changed = (one - two).abs().amax(1).nonzero().flatten() - at
    reach = network.config.reach
    assert -reach - 4 < changed.min() < -reach / 2 and reach / 2 < changed.max() < reach + 4


def test_the_paper_size_sees_a_bar_of_music():
    """Two seconds: a bar of four beats at 120 beats per minute."""
    for name in ("small", "t4", "paper", "jukebox_5b"):
        config = PRESETS[name].neural
        assert 2 * config.reach * config.hop / config.sample_rate > 2, name
        with torch.device("meta"):
            network = NeuralLikelihood(config, {"bass": 0.5, "drums": 0.5})
        assert sum(p.numel() for p in network.parameters()) > 5e6


def test_the_loss_is_the_cross_entropy_of_the_sources_codes(tiny_data, tiny_models):
    codec = load_codec(tiny_models / "linearisation/vqvae")
    alpha = load_manifest(tiny_data).alpha
    network = make_network()
    objective = NeuralLikelihoodObjective(codec, network)
    items = CropDataset(load_manifest(tiny_data).split("train"), "sources", 512, alpha)
    batch = collate([items[0], items[1], items[2]])
    out = objective(batch)
    bass, drums = batch[:3], batch[3:]
    mixture = alpha["bass"] * bass + alpha["drums"] * drums
    log_q = network(mixture, codec.latents(mixture))
    bits = {}
    for name, stem in (("bass", bass), ("drums", drums)):
        codes = codec.encode(stem)
        chosen = [
            log_q[name][b, t, codes[b, t]].item() for b in range(3) for t in range(codes.shape[1])
        ]
        bits[name] = -sum(chosen) / len(chosen) / math.log(2)
        assert out.metrics[f"bits_{name}"].item() == pytest.approx(bits[name], rel=1e-5)
    assert out.loss.item() == pytest.approx(sum(bits.values()) / 2, rel=1e-5)
    assert not any(name.startswith("_codec") for name in objective.state_dict())

    objective.measure(batch)
    for name, stem in (("bass", bass), ("drums", drums)):
        counts = torch.bincount(codec.encode(stem).flatten(), minlength=32) + 1.0
        torch.testing.assert_close(network.log_frequencies(name).exp(), counts / counts.sum())
    fine, _ = network._features(mixture, codec.latents(mixture))
    scaled = (fine - network.mean[: fine.shape[-1]]) * network.scale[: fine.shape[-1]]
    torch.testing.assert_close(scaled.flatten(0, 1).mean(0), torch.zeros(24), atol=1e-3, rtol=0)


def test_factors_are_scaled_likelihoods():
    torch.manual_seed(0)
    codec = VQVAE(PRESETS["tiny"].vqvae).eval()
    network = make_network()
    network.set_frequencies({"bass": torch.tensor([1, 1, 5]), "drums": torch.tensor([[0], [31]])})
    mixture = 0.1 * torch.randn(2, 20 * TINY.hop)
    likelihood = ScaledNeuralLikelihood(network, codec, ("drums", "bass"), 0.7)
    factors = likelihood.log_factors(mixture)
    assert tuple(factors) == ("drums", "bass")
    log_q = network(mixture, codec.latents(mixture))
    counts = torch.ones(32)
    counts[1] += 2
    counts[5] += 1
    expected = 0.7 * (log_q["bass"] - (counts / 35).log())
    torch.testing.assert_close(factors["bass"], expected)
    for sources, message in ((("bass", "piano"), "not of piano"),):
        with pytest.raises(ValueError, match=message):
            ScaledNeuralLikelihood(network, codec, sources)
    with pytest.raises(ValueError, match="train it on this codec"):
        ScaledNeuralLikelihood(make_network(hop=32), codec, ("bass",))
    with pytest.raises(ValueError, match="neural_exponent is 0"):
        ScaledNeuralLikelihood(network, codec, ("bass",), 0)


def test_training_resumes_bit_for_bit_and_notices_another_codec(
    tmp_path, tiny_data, tiny_models, tiny_neural_models, capsys
):
    codec, run = tiny_models / "linearisation/vqvae", tmp_path / "run"
    assert train_likelihood.main(flags_of(codec, tiny_data, run, "--train.steps", "3")) == 0
    assert train_likelihood.main(flags_of(codec, tiny_data, run)) == 0
    whole = tiny_neural_models / "linearisation/neural_likelihood"
    first, second = (load_neural_likelihood(folder).state_dict() for folder in (run, whole))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    meta = load_meta(run)
    assert meta["kind"] == "neural_likelihood" and list(meta["alpha"]) == ["bass", "drums"]
    assert meta["pairing"] == "half" and meta["augmentation"]["gain_db"] == 4.0
    metrics = {row.metric for row in read_metrics(run / "metrics.csv") if row.split == "validation"}
    assert {"loss", "bits_bass", "bits_drums"} <= metrics
    capsys.readouterr()
    other = flags_of(tiny_models / "reconstruction/vqvae", tiny_data, run)
    assert "vqvae_fingerprint is '" in error_of(capsys, train_likelihood.main(other))
    wrong = flags_of(codec, tiny_data, tmp_path / "new", "--neural.hop", "32")
    assert "--neural.hop is 32, the codec" in error_of(capsys, train_likelihood.main(wrong))


def test_muon_needs_matrices_that_the_model_names(tmp_path, tiny_data, capsys):
    from scripts import train_mask

    flags = ["--data", str(tiny_data), "--output", str(tmp_path), "--preset", "tiny"]
    flags += ["--device", "cpu", "--wandb", "disabled", "--optim.muon"]
    assert "names no matrices for it" in error_of(capsys, train_mask.main(flags))


def test_it_learns(tmp_path, tiny_data, tiny_models):
    codec = tiny_models / "linearisation/vqvae"
    more = ("--train.steps", "60", "--optim.lr", "1e-2", "--optim.warmup-steps", "0")
    more += ("--optim.ema-decay", "0", "--train.validate-every", "60")
    assert train_likelihood.main(flags_of(codec, tiny_data, tmp_path, *more)) == 0
    losses = [r.value for r in read_metrics(tmp_path / "metrics.csv") if r.metric == "loss"]
    assert load_meta(tmp_path)["metrics"]["validation"]["loss"] < losses[0] - 0.7


@pytest.mark.parametrize("pairing", ("song", "random", "half"))
def test_half_of_the_pairs_are_of_one_song(tiny_data, pairing):
    manifest = load_manifest(tiny_data)
    tracks = manifest.split("train")
    loose = CropDataset(tracks, "sources", 512, manifest.alpha, pairing="random")
    tight = CropDataset(tracks, "sources", 512, manifest.alpha)
    items = CropDataset(tracks, "sources", 512, manifest.alpha, pairing=pairing)
    for index in range(6):
        apart = pairing == "random" or (pairing == "half" and index % 2)
        assert torch.equal(items[index], (loose if apart else tight)[index])


@pytest.mark.parametrize("method", [name for name in METHODS if name not in PUBLISHED_METHODS])
def test_every_method_separates_with_it(method, tiny_neural_models):
    mixture = 0.2 * torch.randn(1, RATE // 2, generator=torch.Generator().manual_seed(0))
    separator = METHODS[method].load_separator(tiny_neural_models, candidates=4)
    assert separator.settings["likelihood"]["neural_exponent"] == 1.0
    stems = separator(mixture, RATE, seed=1)
    torch.testing.assert_close(sum(stems.values()), mixture, atol=1e-5, rtol=0)
    assert all(stem.std() > 0 for stem in stems.values())
    without = separator.likelihood, separator.source_likelihood
    assert (without[0] is None) == (method == "neural") and without[1] is not None


def test_published_methods_ignore_it(tiny_models, tiny_neural_models):
    mixture = 0.2 * torch.randn(1, RATE // 4, generator=torch.Generator().manual_seed(0))
    for method in PUBLISHED_METHODS:
        stems = [
            METHODS[method].load_separator(models, candidates=4)(mixture, RATE)
            for models in (tiny_models, tiny_neural_models)
        ]
        for name in stems[0]:
            assert torch.equal(stems[0][name], stems[1][name])
    assert METHODS["hybrid"].resolve(Settings()).neural_exponent is None
    with pytest.raises(ValueError, match=r"neural_exponent is 1.0, but the method is hybrid"):
        METHODS["hybrid"].resolve(Settings(neural_exponent=1.0))


def test_the_network_changes_the_candidates_and_unigram_priors_too(tiny_neural_models):
    mixtures = 0.2 * torch.randn(1, 64 * 16, generator=torch.Generator().manual_seed(0))
    drawn = []
    for settings in (
        Settings(),
        Settings(neural_exponent=1e-9),
        Settings(neural_exponent=2.0),
        Settings(prior="unigram"),
    ):
        separator = hybrid.load_neural_separator(tiny_neural_models, settings, candidates=4)
        drawn.append(separator.candidates(mixtures, torch.Generator().manual_seed(0)).samples)
    plain = hybrid.load_separator(tiny_neural_models, candidates=4)
    drawn.append(plain.candidates(mixtures, torch.Generator().manual_seed(0)).samples)
    codes = [torch.stack(list(each.codes.values())) for each in drawn]
    assert torch.equal(codes[1], codes[4])  # an exponent of almost nothing
    for i, j in ((0, 1), (0, 2), (0, 3)):
        assert not torch.equal(codes[i], codes[j])


def test_another_codecs_network_is_refused(tmp_path, tiny_neural_models):
    models = tmp_path / "models"
    shutil.copytree(tiny_neural_models, models)
    shutil.rmtree(models / "reconstruction/neural_likelihood")
    shutil.copytree(
        models / "linearisation/neural_likelihood", models / "reconstruction/neural_likelihood"
    )
    with pytest.raises(ValueError, match="was trained on the codes of another codec"):
        load_neural_separator(models)
    shutil.rmtree(models / "linearisation/neural_likelihood")
    with pytest.raises(FileNotFoundError, match="neural_likelihood"):
        hybrid.load_neural_separator(models)
    with pytest.raises(FileNotFoundError, match="neural_likelihood"):
        hybrid.NEURAL.check(models)


def test_the_codec_overrides_the_presets_values(tiny_models):
    codec, demo, tiny = tiny_models / "linearisation/vqvae", PRESETS["demo"], PRESETS["tiny"].vqvae
    config = train_likelihood.defaults(CodecFlags("demo", codec)).neural
    shared = {name: getattr(tiny, name) for name in ("sample_rate", "hop", "l_bins", "emb_width")}
    assert config == replace(demo.neural, **shared) != demo.neural
    prior = train_prior.defaults(CodecFlags("demo", codec)).prior
    assert prior == replace(demo.prior, l_bins=tiny.l_bins, emb_width=tiny.emb_width) != demo.prior


def test_networks_of_other_gains_are_refused(tmp_path, tiny_neural_models):
    """The separator's mixtures have gains of a half."""
    models = tmp_path / "models"
    shutil.copytree(tiny_neural_models, models)
    path = models / "linearisation/neural_likelihood/meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"alpha": {"bass": 0.75, "drums": 0.25}}))
    with pytest.raises(ValueError, match="ScaledNeuralLikelihood was trained on mixtures with"):
        hybrid.load_neural_separator(models)


def test_the_recommended_method_is_the_default_where_it_is_there(
    tmp_path, tiny_models, tiny_neural_models
):
    assert method_of("auto", tiny_models) == "hybrid"
    assert method_of("auto", tiny_neural_models) == "hybrid-neural"
    assert method_of("lass", tiny_neural_models) == "lass"
    assert default_methods(tiny_models) == PUBLISHED_METHODS
    assert default_methods(hybrid.PRETRAINED) == ("lqvae", "hybrid", "hybrid-neural")
    assert default_methods(tiny_models / "linearisation") == PUBLISHED_METHODS  # refused later
    assert default_methods(tiny_neural_models) == (*PUBLISHED_METHODS, "hybrid-neural")
    song = tmp_path / "song.wav"
    audio_io.save(song, 0.1 * torch.randn(1, RATE), RATE)
    flags = [str(song), "--models", str(tiny_neural_models), "--device", "cpu"]
    for name, method in (("auto", ()), ("named", ("--method", "hybrid-neural"))):
        more = ("--output", str(tmp_path / name), "--candidates", "4", *method)
        assert separate.main([*flags, *more]) == 0
    stems = [audio_io.load(tmp_path / name / "song/bass.wav")[0] for name in ("auto", "named")]
    assert torch.equal(*stems)


def test_an_ablation_has_its_rows(tmp_path, tiny_data, tiny_neural_models, capsys):
    every = list(rows(tiny_neural_models, 4, parts=False))
    names = [row.name for row in every]
    made = estimators(tiny_neural_models)
    assert len(set(names)) == len(names) and all(row.estimator in made for row in every)
    for method in ("lqvae-neural", "lass-neural", "hybrid-neural", "neural"):
        assert f"{method}, default: refined" in names
    assert "neural, no priors, most probable codes: refined" in names
    own = list(rows(tiny_neural_models, 4, True, ("neural",)))
    assert [row.name for row in own] == [n for n in names if n.startswith("neural")]
    flags = ["--models", str(tiny_neural_models), "--data", str(tiny_data), "--no-parts"]
    flags += ["--output", str(tmp_path / "out"), "--chunks", "1", "--seeds", "1", "--jobs", "1"]
    flags += ["--candidates", "4", "--chunk-codes", "64"]
    assert ablate.main([*flags, "--methods", "hybrid", "hybrid-neural", "neural"]) == 0
    lines = json.loads((tmp_path / "out/ablation.json").read_text())
    pairs = {(line["first"], line["second"]) for line in lines["comparisons"]}
    assert ("hybrid-neural, default: refined", "hybrid, default: refined") in pairs
    assert ("neural, default: refined", "neural, no priors: refined") in pairs
    assert "Hybrid + neural, default: refined" in capsys.readouterr().out


def test_the_demo_trains_it_and_scores_it_beside_the_published_systems():
    plan = {stage.name: stage for stage in demo.stages(demo.Args())}
    assert "codec linearisation" in plan["neural likelihood"].after
    assert {"neural likelihood", "mask estimator"} <= set(plan["mask network"].after)
    assert "mask network" in plan["scores hybrid-neural"].after
    for method in PUBLISHED_METHODS:
        assert "neural likelihood" not in plan[f"scores {method}"].after
        assert f"scores {method}" in plan["scores"].after
    out = plan["mask network"].command[plan["mask network"].command.index("--output") + 1]
    assert Path(out) == Path("runs/demo/models/mask_network/hybrid-neural")
