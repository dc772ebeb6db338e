"""Parity checks of upstream's choice and preparation of training audio."""

from __future__ import annotations

import re

import torch

from jukebox_core.upstream.training import (
    Place,
    bandwidths,
    mono,
    non_silent_chunks,
    number_of_items,
    place_of_item,
    shuffle_chunks,
    subsample,
)
from scripts.check_parity.codec import stft_of
from scripts.check_parity.fixtures import Fixture, check

STRIDE = 16
BANDWIDTH_RATE = 22_050
"""Sample rate of the recorded bandwidths, which their side-car lacks."""


@check("misc")
def misc(fixture: Fixture) -> None:
    """Places of items, mono, bandwidths, non-silent chunks, random orders."""
    _places(fixture)
    stereo, weights = fixture.tensor("preprocess/x"), fixture.tensor("preprocess/mix")
    fixture.close("mono", mono(stereo).unsqueeze(-1), "preprocess/out_noblend")
    fixture.close("mono, blended", mono(stereo, weights).unsqueeze(-1), "preprocess/out_blend")
    _bandwidths(fixture)
    sources = fixture.tensor("nonsilent/a")[0], fixture.tensor("nonsilent/b")[0]
    for case in fixture.info["nonsilent"]:
        chunks = non_silent_chunks(sources, case["max_chunk"], case["min_chunk"])
        fixture.equal("non_silent_chunks", chunks, case["chunks"])
    drawn = fixture.info["subsample"]
    ours = subsample(drawn["n"], drawn["k"], drawn["seed"])
    fixture.equal("subsample", ours, drawn["indices"])
    for key, shuffled in fixture.info.items():
        if match := re.fullmatch(r"chunk_shuffle_Random(\d+)", key):
            orders = shuffle_chunks(shuffled["lengths"], int(match[1]))
            for order, expected in zip(orders, shuffled["shuffled"], strict=True):
                fixture.equal("shuffle_chunks", order, expected)


def _places(fixture: Fixture) -> None:
    info = fixture.info["index_offset"]
    lengths, crop = info["durations"], info["sample_length"]
    for shifted in ("False", "True"):
        number, recorded = number_of_items(lengths, crop), fixture.info[f"len_{shifted}"]
        fixture.equal("number_of_items", number, recorded)
        items = fixture.tensor(f"index_offset/shift_{shifted}").long().tolist()
        for item, shift, song, offset in items:
            try:
                place = place_of_item(lengths, crop, item, shift)
            except ValueError:
                place = Place(-1, offset)  # as the recorded program's failed assertion
            fixture.equal("place_of_item", list(place), [song, offset])


def _bandwidths(fixture: Fixture) -> None:
    note = fixture.info.get("bandwidth_note", "")
    seconds = re.search(r"duration=([\d.]+) s", note)
    mono_items = fixture.tensor("bandwidth/items_used").squeeze(-1)  # [N, T]
    items = {i * STRIDE: item.expand(2, -1) for i, item in enumerate(mono_items)}
    duration = float(seconds[1]) if seconds else 2.0
    recorded = fixture.info["bandwidth"]
    # Not every side-car states the STFT: the nearest of the possible ones is taken.
    infos = [fixture.info]
    if "spectral_stft" not in fixture.info:
        infos += [fixture.side_car(name) for name in ("vqvae_loss", "lqvae_loss")]
    measured = [
        bandwidths(items, duration, BANDWIDTH_RATE, stft, STRIDE)
        for stft in dict.fromkeys(map(stft_of, infos))
    ]
    best = min(measured, key=lambda bandwidth: abs(bandwidth.spec - recorded["spec"]))
    for name, expected in recorded.items():
        fixture.close("bandwidths", torch.tensor(getattr(best, name)), expected)
