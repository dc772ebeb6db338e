"""Descriptions of data for the fuzzer: Slakh's metadata.yaml and manifests of prepared data."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from conftest import write_data_set
from fuzz_cases import VALUES, Case, Random, check, edited, json_text, mutated, pick
from test_prepare_slakh import RATE, entry, write_track

from data.slakh import prepare
from jukebox_core import audio
from jukebox_core.datasets.manifest import load_manifest

TRACK = "slakh/train/Track00001"
STEM_NAMES = (
    "/etc/hostname", "../../Track00002/stems/S00", "../stems/S00", "S00/../S00", "..", ".", "",
    "a\0b", "x" * 300, "a\nb\x1b[31m", "\ud800"[:0] + "ü", "C:\\x", "S00.flac",
)  # fmt: skip
LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
MERGES = "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 30))
KINDS = ("fields",) * 6 + ("bytes", "bomb") * 3 + ("names", "links") * 2 + ("many",)
BOMBS = {
    "aliases": "a0: &a0 [x]\n" + LAUGHS + "stems: {S00: *a29}\n",
    "aliases as stems": "a0: &a0 [x]\n" + LAUGHS + "stems: *a29\n",
    "merged aliases": "m0: &m0 {k: v}\n" + MERGES + "stems: *m29\n",
    "alias of itself": "stems: &a {S00: *a}\n",
    "alias of itself in a list": "stems: &a [*a, *a]\n",
    "merge of itself": "stems: &a {<<: *a}\n",
    "sexagesimal": f"stems: {{S00: {'1:' * 200_000}1}}\n",
    "sexagesimal float": f"stems: {{S00: {'1:' * 200_000}1.5}}\n",
    "binary number": f"stems: {{S00: 0b{'1' * 500_000}}}\n",
    "digits": f"stems: {{S00: {'9' * 500_000}}}\n",
    "deep list": f"stems: {'[' * 100_000}{']' * 100_000}\n",
    "deep mapping": "stems: " + "{a: " * 50_000 + "1" + "}" * 50_000 + "\n",
    "deep block": "".join(" " * n + "a:\n" for n in range(1300)),
    "code": 'stems: !!python/object/apply:os.system ["touch executed"]\n',
    "code of a tuple": 'stems: !!python/object/new:os.system ["touch executed"]\n',
    "documents": "stems: {}\n---\nstems: {}\n",
    "too large": "stems: {}\n#" + "x" * (1 << 20),
    "tabs": "stems:\n\tS00: 1\n",
    "keys of lists": "stems: {? [a, b] : c}\n",
    "set": "stems: !!set {S00, S01}\n",
    "date": "stems: {S00: 2001-99-99}\n",
    "base64": "stems: !!binary x\n",
    "pairs": "stems: !!omap [S00: 1, S00: 2]\n",
}


class Metadata:
    """Metadata in `data.slakh.prepare`, and manifests in `load_manifest`."""

    def prepare(self, seeds: Path) -> None:
        write_track(seeds / TRACK, "Bass", "Drums", "Piano", samples=800)
        write_track(seeds / "slakh/train/Track00002", "Bass", "Drums", samples=800, seed=1)
        songs = {
            f"Track{n:05d}": ("train", {k: 0.1 * torch.ones(64) for k in ("bass", "drums")})
            for n in range(1, 4)
        }
        write_data_set(seeds / "data", songs)

    def make(self, rng: Random, seeds: Path, home: Path) -> Case:
        if rng.random() < 0.4:
            return self._manifest(rng, seeds, home)
        shutil.copytree(seeds / "slakh", home / "slakh")
        shutil.rmtree(home / "slakh/train/Track00002")
        path = home / TRACK / "metadata.yaml"
        kind = pick(rng, KINDS)
        what, valid = _MAKERS[kind](rng, path)
        output = home.parent / "out/prepared"
        read = partial(read_slakh, home / "slakh", output)
        return Case(f"metadata.yaml: {kind}, {what}", read, (str(home / "slakh"),), valid)

    def _manifest(self, rng: Random, seeds: Path, home: Path) -> Case:
        shutil.copytree(seeds / "data", home / "data")
        path, valid = home / "data/manifest.json", None
        content = json.loads(path.read_text(encoding="utf-8"))
        if rng.random() < 0.2:
            track = pick(rng, content["tracks"])
            file = track["files"][pick(rng, ("mixture", "bass", "drums"))]
            inside = home / "data" / file["path"]
            outside = home / "elsewhere.flac"
            shutil.copyfile(inside, outside)
            file["path"] = pick(
                rng, (str(outside), "../elsewhere.flac", "train/../../elsewhere.flac")
            )
            text, what, valid = json.dumps(content).encode(), f"path {file['path']}", False
        else:
            text, what = json_text(rng, content)
        path.write_bytes(text)
        read = partial(read_manifest, home / "data")
        return Case(f"manifest.json: {what}", read, (str(home / "data"),), valid)


PARSER = Metadata()


def read_slakh(slakh: Path, output: Path) -> None:
    """Prepare a data set; what is prepared is aligned and exact."""
    manifest, _ = prepare(slakh, output, sample_rate=RATE, workers=1)
    check(manifest.tracks, "it has no tracks")
    for track in manifest.tracks:
        check(output in track.mixture.parents, f"{track.mixture} is not in the output")
        mixture, rate = audio.load(track.mixture)
        sources = torch.stack([audio.load(path)[0] for path in track.sources.values()])
        check(mixture.shape == (1, track.samples) and rate == RATE, f"{tuple(mixture.shape)}")
        check(torch.equal(sources.mean(0), mixture), "the mixture is not the mean")
        check(isinstance(track.song, str), f"its song is {track.song!r}")


def read_manifest(folder: Path) -> None:
    """Load a manifest; every field has its type, and every path is in the folder."""
    manifest = load_manifest(folder)
    whole = isinstance(manifest.sample_rate, int) and 0 < manifest.sample_rate < 2**63
    check(whole, f"sample_rate is {manifest.sample_rate!r}")
    check(len(manifest.sources) >= 1, "no sources")
    check(set(manifest.alpha) == set(manifest.sources), f"alpha is {manifest.alpha}")
    check(all(np.isfinite(a) and a > 0 for a in manifest.alpha.values()), "alpha is not positive")
    for track in manifest.tracks:
        for name in ("name", "split", "song"):
            check(isinstance(getattr(track, name), str), f"{name} is {getattr(track, name)!r}")
        check(isinstance(track.samples, int) and 0 < track.samples < 2**63, f"{track.samples!r}")
        check(set(track.sources) == set(manifest.sources), f"sources are {list(track.sources)}")
        for path in (track.mixture, *track.sources.values()):
            inside = path.relative_to(folder) if folder in path.parents else Path("..")
            check(".." not in inside.parts, f"{path} is outside of the data set")
        for name, checksum in track.checksums.items():
            check(isinstance(checksum, str), f"the checksum of {name} is {checksum!r}")


def _fields(rng: Random, path: Path) -> tuple[str, None]:
    content, what = edited(rng, yaml.safe_load(path.read_text(encoding="utf-8")))
    if rng.random() < 0.3 and isinstance(content, dict):
        content[pick(rng, ("UUID", "lmd_midi_dir", "song", "generator"))] = pick(rng, VALUES)
    path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return what, None


def _bytes(rng: Random, path: Path) -> tuple[str, None]:
    path.write_bytes(mutated(rng, path.read_bytes()))
    return "", None


def _names(rng: Random, path: Path) -> tuple[str, bool]:
    name = pick(rng, STEM_NAMES)
    stems = {name: entry("Bass"), "S01": entry("Drums")}
    path.write_text(json.dumps({"stems": stems}), encoding="utf-8")
    return f"a stem {name[:40]!r}", False


def _bomb(rng: Random, path: Path) -> tuple[str, bool]:
    name = pick(rng, list(BOMBS))
    path.write_text(BOMBS[name], encoding="utf-8")
    return name, False


def _many(rng: Random, path: Path) -> tuple[str, bool]:
    """Very many stems that have no file, or are of no source; two real ones."""
    number, other = pick(rng, (50, 300, 3000)), pick(rng, ("Bass", "Piano"))
    stems = {f"S{n:05d}": entry(other) for n in range(10, number)}
    stems |= {"S00": entry("Bass"), "S01": entry("Drums")}
    path.write_text(json.dumps({"stems": stems}), encoding="utf-8")
    return f"{number} stems of {other}", other == "Piano"


def _links(rng: Random, path: Path) -> tuple[str, bool | None]:
    """Links, folders and devices in the place of files."""
    stem, outside = path.parent / "stems/S00.flac", path.parents[3] / "elsewhere"
    targets: dict[str, Any] = {"a loop": "S00.flac", "/dev/zero": "/dev/zero", "nothing": "gone"}
    kind = pick(rng, (*targets, "the file elsewhere", "a pipe", "a folder", "the track elsewhere",
                      "metadata elsewhere", "metadata of /dev/zero"))  # fmt: skip
    if kind.startswith("metadata"):
        path.rename(outside)
        path.symlink_to("/dev/zero" if "zero" in kind else outside)
        return kind, "zero" not in kind
    if kind == "the track elsewhere":
        path.parent.rename(outside)
        path.parent.symlink_to(outside)
        return kind, True
    if kind == "the file elsewhere":
        stem.rename(outside)
        stem.symlink_to(outside)
        return kind, True
    stem.unlink()
    if kind == "a pipe":
        os.mkfifo(stem)
    elif kind == "a folder":
        stem.mkdir()
    else:
        stem.symlink_to(targets[kind])
    return kind, False


_MAKERS: dict[str, Any] = {
    "fields": _fields, "names": _names, "bytes": _bytes, "bomb": _bomb, "many": _many,
    "links": _links,
}  # fmt: skip
