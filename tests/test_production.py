"""Production effects: each against a formula or a plain implementation; what all of them keep."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import RATE
from hypothesis import given, settings
from hypothesis import strategies as st

from jukebox_core.audio.production import (
    EFFECTS,
    Compressor,
    Detuning,
    Equaliser,
    Production,
    Reverb,
    Saturation,
    Width,
)

STUDIO = 44_100


def noise(samples, seed=0):
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def sine(hertz, samples, rate=RATE):
    return np.sin(2 * np.pi * hertz / rate * np.arange(samples))


def response_db(effect, hertz, rate=STUDIO, length=1 << 17):
    """Gain of a linear effect at frequencies, from its impulse response."""
    impulse = np.zeros(length)
    impulse[0] = 1.0
    response = effect(impulse, rate)
    phases = np.exp(-2j * np.pi * np.outer(hertz, np.arange(length)) / rate)
    return 20 * np.log10(np.abs(phases @ response))


def analog_db(kind, hertz, centre, gain_db, q, rate=STUDIO):
    """The Audio EQ Cookbook's analog prototypes, at frequencies bent by the bilinear transform."""
    s = 1j * np.tan(np.pi * np.asarray(hertz) / rate) / np.tan(np.pi * centre / rate)
    a = 10 ** (gain_db / 40)
    below = a * (s**2 + np.sqrt(a) / q * s + a) / (a * s**2 + np.sqrt(a) / q * s + 1)
    value = {
        "low": below,
        "high": a * (a * s**2 + np.sqrt(a) / q * s + 1) / (s**2 + np.sqrt(a) / q * s + a),
        "peak": (s**2 + s * a / q + 1) / (s**2 + s / (a * q) + 1),
    }[kind]
    return 20 * np.log10(np.abs(value))


# Linear effects


@pytest.mark.parametrize("gain_db", [-9.0, 3.0, 12.0])
def test_equaliser_has_the_response_of_its_formula(gain_db):
    hertz = [20, 70, 150, 400, 1000, 1300, 4000, 9000, 16_000]
    shelf = math.sqrt(0.5)
    for effect, expected in (
        (Equaliser(low_hz=150, low_db=gain_db), ("low", hertz, 150, gain_db, shelf)),
        (Equaliser(high_hz=4000, high_db=gain_db), ("high", hertz, 4000, gain_db, shelf)),
        (
            Equaliser(peak_hz=1000, peak_db=gain_db, peak_q=1.7),
            ("peak", hertz, 1000, gain_db, 1.7),
        ),
    ):
        assert response_db(effect, hertz) == pytest.approx(analog_db(*expected), abs=1e-3)
    together = Equaliser(150, gain_db, 1000, gain_db, 1.7, 4000, gain_db)
    parts = [
        analog_db(kind, hertz, centre, gain_db, q)
        for kind, centre, q in (("low", 150, shelf), ("peak", 1000, 1.7), ("high", 4000, shelf))
    ]
    assert response_db(together, hertz) == pytest.approx(sum(parts), abs=1e-3)


@pytest.mark.parametrize("slope", [-2.0, -0.7, 1.5])
def test_tilt_is_a_straight_line_of_its_slope(slope):
    octaves = np.arange(0, 6.1, 0.25)  # 60 Hz to 3.8 kHz
    gains = response_db(Equaliser(tilt_db=slope), 60 * 2**octaves)
    fitted = np.polyval(np.polyfit(octaves, gains, 1), octaves)
    assert np.polyfit(octaves, gains, 1)[0] == pytest.approx(slope, rel=0.05)
    assert gains == pytest.approx(fitted, abs=0.3)


def test_bands_that_a_low_sample_rate_does_not_have_are_left_out():
    effect = Equaliser(high_hz=5000, high_db=9)
    assert len(effect.sections(STUDIO)) == 1 and len(effect.sections(8000)) == 0
    audio = noise(1000)
    assert np.array_equal(effect(audio, 8000), audio)


def test_width_is_the_comb_filter_of_its_delay():
    effect = Width(delay=48 / 48_000, amount=0.8)
    hertz = np.array([10, 250, 500, 1000, 1500, 12_345])
    comb = np.abs(0.6 + 0.4 * np.exp(-2j * np.pi * hertz * 0.001))
    assert response_db(effect, hertz, 48_000) == pytest.approx(20 * np.log10(comb), abs=1e-6)
    assert comb.min() == pytest.approx(1 - 0.8)


@pytest.mark.parametrize(("decay", "density"), [(0.3, 3000.0), (1.0, 44_100.0)])
def test_reverb_decays_by_60_db_in_its_time(decay, density):
    effect = Reverb(decay, 0.01, 6000.0, density, wet_db=-10.0, seed=3)
    response = effect.response(STUDIO)
    late = response[round(0.01 * STUDIO) :]
    assert not response[: round(0.01 * STUDIO)].any() and late[0]
    assert 10 * np.log10(np.square(response).sum()) == pytest.approx(-10)
    left = 10 * np.log10(np.cumsum(np.square(late)[::-1])[::-1])  # Schroeder's integral
    left -= left[0]
    inside = (left < -5) & (left > -35)
    slope = np.polyfit(np.flatnonzero(inside) / STUDIO, left[inside], 1)[0]
    assert -60 / slope == pytest.approx(decay, rel=0.08)


def test_reverb_is_the_dry_sound_and_its_convolution():
    effect = Reverb(0.05, 0.002, 4000.0, 5000.0, wet_db=-6.0, seed=1)
    audio = noise(3000)
    wet = np.convolve(audio.astype(np.float64), effect.response(8000))[:3000]
    assert effect(audio, 8000) == pytest.approx(audio + wet, abs=1e-9)


# Levels


@pytest.mark.parametrize("drive_db", [-6.0, 12.0])
def test_saturation_is_a_scaled_tanh(drive_db):
    audio = noise(500)
    drive, peak = 10 ** (drive_db / 20), float(np.abs(audio).max())
    expected = torch.tanh(torch.from_numpy(audio).double() * (drive / peak)) * (peak / drive)
    assert Saturation(drive_db)(audio, RATE) == pytest.approx(expected.numpy(), rel=1e-9)


@pytest.mark.parametrize(
    ("threshold", "ratio", "knee", "reduction"),
    [
        (-12.0, 4.0, 6.0, 9.0),
        (-12.0, 1.0, 6.0, 0.0),
        (6.0, 4.0, 6.0, 0.0),
        (0.0, 4.0, 6.0, 0.75 * 3**2 / (2 * 6)),
        (-2.0, 2.0, 6.0, 0.5 * 5**2 / (2 * 6)),
        (-2.0, 2.0, 0.0, 1.0),
    ],
)
def test_compressor_reduces_a_steady_tone_by_its_static_curve(threshold, ratio, knee, reduction):
    tone = sine(1000, 48_000, 48_000)  # three periods per block
    audio = Compressor(threshold, ratio, 0.01, 0.1, knee)(tone, 48_000)
    assert audio == pytest.approx(tone * 10 ** (-reduction / 20), abs=1e-9)


def test_compressor_follows_steps_with_attack_and_release():
    rate, block = 11_000, 33
    quiet, loud = np.full(100 * block, 0.01), np.full(100 * block, 1.0)
    audio = np.concatenate([quiet, loud, quiet])
    rms_db = 20 * np.log10(np.sqrt(np.square(audio).mean()))
    effect = Compressor(-12.0, 4.0, attack=0.03, release=0.2)
    reduced = -20 * np.log10(effect(audio, rate) / audio)[block // 2 :: block]
    most = 0.75 * (12 - rms_db)
    attack, release = (math.exp(-block / rate / seconds) for seconds in (0.03, 0.2))
    steps = np.arange(1, 101)
    assert reduced[:100] == pytest.approx(0, abs=1e-9)
    assert reduced[100:200] == pytest.approx(most * (1 - attack**steps), abs=1e-6)
    assert reduced[200:] == pytest.approx(reduced[199] * release**steps, abs=1e-6)


# Detuning


@pytest.mark.parametrize("hertz", [41.0, 110.0, 440.0])
@pytest.mark.parametrize("cents", [-50.0, 8.0, 100.0])
def test_detuning_moves_a_tone_by_its_cents(hertz, cents):
    tone = sine(hertz, 3 * RATE)
    detuned = Detuning(cents)(tone, RATE)
    spectrum = np.fft.fft(detuned * np.hanning(len(tone)))
    spectrum[len(tone) // 2 :] = 0
    inner = slice(len(tone) // 6, 5 * len(tone) // 6)
    phase = np.unwrap(np.angle(np.fft.ifft(spectrum)))[inner]
    measured = np.polyfit(np.arange(len(phase)), phase, 1)[0] * RATE / (2 * np.pi)
    assert 1200 * np.log2(measured / hertz) == pytest.approx(cents, abs=1.0)
    # pieces fit together: nothing cancels where they overlap
    frames = detuned[RATE // 2 : 5 * RATE // 2].reshape(-1, RATE // 10)
    assert np.sqrt(np.square(frames).mean(1)) == pytest.approx(math.sqrt(0.5), rel=0.1)


@pytest.mark.parametrize("cents", [-50.0, 50.0])
def test_detuning_keeps_the_tempo(cents):
    hits = np.zeros(10 * RATE)
    starts = np.arange(40) * RATE // 4 + 1000
    for start in starts:
        hits[start : start + 500] = noise(500, start) * np.exp(-np.arange(500) / 100)
    detuned = np.abs(Detuning(cents)(hits, RATE))
    cells = [detuned[start - 900 : start + 2000] for start in starts]
    onsets = [int(np.argmax(cell > 0.2 * cell.max())) - 900 for cell in cells]
    assert np.abs(onsets).max() < 0.025 * RATE


# Chains


def test_no_effects_give_the_input_and_neutral_ones_almost():
    audio = noise(5000)
    assert Production()(audio, RATE) is audio
    neutral = Production(
        Detuning(0.0),
        Compressor(0.0, 1.0, 0.01, 0.1),
        Equaliser(),
        Saturation(-80.0),
        Width(0.01, 0.0),
        Reverb(0.3, 0.0, 5000.0, 5000.0, -120.0, 0),
    )
    assert neutral(audio, RATE) == pytest.approx(audio, abs=2e-5)


def test_equal_seeds_are_equal_bytes_and_others_differ():
    audio = noise(RATE)
    results = [
        Production.draw(np.random.default_rng(seed))(audio, RATE).tobytes() for seed in (1, 1, 2)
    ]
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("seed", range(12))
def test_level_and_type_are_kept_and_the_scale_does_not_matter(seed):
    production = Production.draw(np.random.default_rng(seed))
    audio = 0.1 * noise(RATE)
    processed = production(audio, RATE)
    assert processed.dtype == np.float32 and processed.shape == audio.shape
    assert np.linalg.norm(processed) == pytest.approx(np.linalg.norm(audio), rel=1e-5)
    assert production(64 * audio, RATE) == pytest.approx(64 * processed, abs=1e-4)


def test_effects_that_are_left_out_do_not_change_the_others():
    for seed in range(30):
        whole = Production.draw(np.random.default_rng(seed))
        some = Production.draw(np.random.default_rng(seed), ["reverb", "eq"])
        assert some == Production(eq=whole.eq, reverb=whole.reverb)
    with pytest.raises(ValueError, match="'echo' is no effect, expected some of detuning"):
        Production.draw(np.random.default_rng(0), ["eq", "echo"])


def test_draws_have_their_probabilities_and_ranges():
    rng = np.random.default_rng(0)
    drawn = [Production.draw(rng) for _ in range(2000)]
    for name, kind in EFFECTS.items():
        present = [p.chain[name] for p in drawn if name in p.chain]
        assert len(present) / 2000 == pytest.approx(kind.probability, abs=0.04)
    cents = np.abs([p.detuning.cents for p in drawn if p.detuning])
    assert cents.max() <= 50 and np.median(cents) == pytest.approx(12.5, rel=0.15)
    wet = [p.reverb.wet_db for p in drawn if p.reverb]
    assert -26 <= min(wet) and max(wet) <= -4 and np.median(wet) == pytest.approx(-20.5, abs=1)
    amounts = [p.width.amount for p in drawn if p.width]
    assert 0.1 <= min(amounts) and max(amounts) <= 0.9


def test_the_parameters_describe_the_production():
    production = Production.draw(np.random.default_rng(4))
    described = production.as_dict()
    assert Production(**{k: EFFECTS[k](**v) for k, v in described.items()}) == production
    assert list(described) == [name for name in EFFECTS if getattr(production, name) is not None]
    assert all(type(x) in (int, float) for effect in described.values() for x in effect.values())


SIGNALS = {
    "silence": lambda n: np.zeros(n),
    "constant": lambda n: np.ones(n),
    "impulse": lambda n: np.eye(1, n, n // 2)[0],
    "square": lambda n: np.where(np.arange(n) // 50 % 2, 1.0, -1.0),
    "tiny": lambda n: np.full(n, 1e-30),
    "noise": noise,
}


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(list(SIGNALS)),
    samples=st.one_of(st.sampled_from([1, 2, 3, 20, 12_000]), st.integers(1, 3000)),
    rate=st.sampled_from([1000, 8000, 22_050, 48_000]),
)
def test_any_audio_stays_finite_and_silence_silent(seed, kind, samples, rate):
    audio = SIGNALS[kind](samples).astype(np.float32)
    rng = np.random.default_rng(seed)
    every = Production(**{name: effect.draw(rng) for name, effect in EFFECTS.items()})
    for production in (every, Production.draw(rng)):
        processed = production(audio, rate)
        assert processed.shape == audio.shape and np.isfinite(processed).all()
        assert processed.any() == audio.any()


def test_what_is_no_mono_audio_is_refused():
    for shape in ((2, 100), (0,)):
        with pytest.raises(ValueError, match="expected \\[T\\] with samples"):
            Production()(np.zeros(shape), RATE)


@pytest.mark.parametrize("name", EFFECTS)
def test_parameters_are_checked(name):
    effect = EFFECTS[name].draw(np.random.default_rng(0))
    for field in dataclasses.fields(effect):
        for value in (math.nan, math.inf, "1", None):
            with pytest.raises(ValueError, match=f"^{field.name} is "):
                dataclasses.replace(effect, **{field.name: value})
