"""Parity checks of upstream's choice and preparation of training audio."""

from __future__ import annotations

import re

import torch
from torch import Tensor

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
from scripts.check_parity.fixtures import Fixture, Report, check
from scripts.check_parity.seeds import sibling_info

STRIDE = 16
BANDWIDTH_RATE = 22_050
"""Sample rate of the recorded bandwidths, which their side-car lacks."""


class _Stereo:
    """The recorded mono items on both channels, at their recorded indices."""

    def __init__(self, items: Tensor):
        self._items = items  # [N, T]

    def __getitem__(self, index: int) -> Tensor:
        return self._items[index // STRIDE].expand(2, -1)


@check("misc")
def misc(fixture: Fixture, report: Report) -> None:
    """Places of items, mono, bandwidths, non-silent chunks, random orders."""
    _places(fixture, report)
    stereo = fixture.tensor("preprocess/x")
    plain = fixture.tensor("preprocess/out_noblend").squeeze(-1)
    report.close("mono", mono(stereo), plain)
    blended = fixture.tensor("preprocess/out_blend").squeeze(-1)
    report.close("mono, blended", mono(stereo, fixture.tensor("preprocess/mix")), blended)
    _bandwidths(fixture, report)
    sources = fixture.tensor("nonsilent/a")[0], fixture.tensor("nonsilent/b")[0]
    for case in fixture.info["nonsilent"]:
        chunks = non_silent_chunks(sources, case["max_chunk"], case["min_chunk"])
        report.equal("non_silent_chunks", chunks, case["chunks"])
    drawn = fixture.info["subsample"]
    ours = subsample(drawn["n"], drawn["k"], drawn["seed"])
    report.equal("subsample", ours, drawn["indices"])
    for key, shuffled in fixture.info.items():
        if match := re.fullmatch(r"chunk_shuffle_Random(\d+)", key):
            orders = shuffle_chunks(shuffled["lengths"], int(match[1]))
            for order, expected in zip(orders, shuffled["shuffled"], strict=True):
                report.equal("shuffle_chunks", order, expected)


def _places(fixture: Fixture, report: Report) -> None:
    info = fixture.info["index_offset"]
    lengths, crop = info["durations"], info["sample_length"]
    for shifted in ("False", "True"):
        report.equal(
            "number_of_items", number_of_items(lengths, crop), fixture.info[f"len_{shifted}"]
        )
        for item, shift, song, offset in (
            fixture.tensor(f"index_offset/shift_{shifted}").long().tolist()
        ):
            try:
                place = place_of_item(lengths, crop, item, shift)
            except ValueError:
                place = Place(-1, offset)  # as the recorded program's failed assertion
            report.equal("place_of_item", list(place), [song, offset])


def _bandwidths(fixture: Fixture, report: Report) -> None:
    note = fixture.info.get("bandwidth_note", "")
    seconds = re.search(r"duration=([\d.]+) s", note)
    items = _Stereo(fixture.tensor("bandwidth/items_used").squeeze(-1))
    duration = float(seconds[1]) if seconds else 2.0
    recorded = fixture.info["bandwidth"]
    measured = [
        bandwidths(items, duration, BANDWIDTH_RATE, stft, STRIDE) for stft in _stfts(fixture)
    ]
    best = min(measured, key=lambda bandwidth: abs(bandwidth.spec - recorded["spec"]))
    for name, expected in recorded.items():
        report.close("bandwidths", torch.tensor(getattr(best, name)), expected)


def _stfts(fixture: Fixture) -> list[tuple[int, int, int]]:
    """STFTs that the recorded spectrograms may have: not every side-car states one."""
    infos = [fixture.info]
    if "spectral_stft" not in fixture.info:
        infos += [sibling_info(fixture, name) for name in ("vqvae_loss", "lqvae_loss")]
    return list(dict.fromkeys(stft_of(info) for info in infos))
