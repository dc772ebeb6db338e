"""Files that an evaluation writes, and how to recognise files of earlier runs.

    OUTPUT                              the results, which name their examples
    OUTPUT.parts/METHOD.json            results of a finished method, until all are done
    OUTPUT.parts/METHOD.examples.json   names of its examples, until OUTPUT lists them
    NAME_audio/NN_METHOD_SOURCE.flac    examples, if OUTPUT is NAME.json

All other files are the user's, including examples that neither the results nor a record names. They
are never replaced or removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jukebox_core.files import check_replaceable, check_writable, json_with, write_json
from jukebox_core.kept import is_kept

EXAMPLES = 3
"""Default number of chunks whose audio is written."""
BASELINES = ("mixture", "hpss", "nmf", "supervised", "codec", "codec_lass", "irm")
HEARD = ("nmf", "supervised")
"""Baselines with examples."""
PLAYED = {("selected", True): "", ("oracle", False): "_oracle"}
"""{(estimate, refined): suffix of its examples}."""
_TRUTH = "truth"  # the true sources and the mixture
_EXAMPLE = re.compile(r"\d{2,}_[^/\\]+\.(flac|npz)")
_is_results = json_with("meta.examples", "rows", "chunks")
_is_part_0_1 = json_with("key", "chunks")
_is_record = json_with("examples")


def _is_part(path: Path) -> bool:
    return is_kept(path) or _is_part_0_1(path)


@dataclass(frozen=True)
class Outputs:
    """The paths that an evaluation writes.

    results: the JSON file. sources: the data set's sources. systems: names of all methods.
    """

    results: Path
    sources: Sequence[str]
    systems: Collection[str]

    @property
    def parts(self) -> Path:
        """Folder of the finished methods and of the records of examples."""
        return self.results.with_name(self.results.name + ".parts")

    @property
    def audio(self) -> Path:
        """Folder of the examples."""
        return self.results.with_name(self.results.stem + "_audio")

    def part(self, method: str) -> Path:
        """File of a finished method."""
        return self.parts / f"{method}.json"

    def example(self, i: int, group: str, name: str, suffix: str = "flac") -> str:
        """Path of an example, relative to the folder of the results."""
        stem = "_".join(part for part in (f"{i:02d}", group, name) if part)
        return f"{self.audio.name}/{stem}.{suffix}"

    def examples(self, method: str, count: int) -> list[str]:
        """Paths of a method's first `count` examples; `truth` also has the mixtures."""
        suffixes = tuple(PLAYED.values()) if method in self.systems else ("",)
        names = []
        for i in range(count):
            names += [self.example(i, method + x, s) for x in suffixes for s in self.sources]
            if method in self.systems:
                names.append(self.example(i, method, "uncertainty", "npz"))
            elif method == _TRUTH:
                names.append(self.example(i, "", "mixture"))
        return names

    def check(self, methods: Iterable[str], baselines: Collection[str], examples: int) -> None:
        """Refuse to replace anything that no former evaluation wrote.

        Args:
            methods: systems that will be scored.
            baselines: scored beside them.
            examples: largest number of chunks with examples.

        Raises:
            FileExistsError: another file is in the place of an output.
            OSError: the files cannot be written there.
        """
        check_replaceable(self.results, _is_results, "the results of an evaluation")
        scored = [*methods, *baselines, *(["codec_lass"] if "codec" in baselines else [])]
        for method in scored:
            check_replaceable(self.part(method), _is_part, "a part of an evaluation")
        for method in (*scored, _TRUTH):
            check_replaceable(self._record(method), _is_record, "a record of examples")
        if examples < 1:
            return
        check_writable(self.audio / "00")
        heard = [method for method in scored if method in self.systems or method in HEARD]
        first = [name for method in (*heard, _TRUTH) for name in self.examples(method, 1)]
        endings = {Path(name).name.removeprefix("00_") for name in first}
        owned = self.owned()
        for path in sorted(self.audio.glob("*")):
            number, _, ending = path.name.partition("_")
            if ending not in endings or not number.isdecimal():
                continue
            written = number == f"{int(number):02d}" and int(number) < examples
            if written and (path.name not in owned or not _is_plain(path)):
                raise FileExistsError(
                    f"{path} exists and is not an example that a former evaluation into "
                    f"{self.results} wrote: choose another output, or move the file"
                )

    def owned(self) -> set[str]:
        """Names of the examples of former runs, from their results and records."""
        named = _strings(_content(self.results, _is_results).get("meta", {}).get("examples"))
        for method in self._all():
            named += _strings(_content(self._record(method), _is_record))
        paths = map(PurePosixPath, named)
        return {
            path.name
            for path in paths
            if path == PurePosixPath(self.audio.name, path.name) and _EXAMPLE.fullmatch(path.name)
        }

    def announce(self, method: str, names: Iterable[str]) -> None:
        """Record examples before they are written, so that the next run knows a stopped run's."""
        path = self._record(method)
        before = _strings(_content(path, _is_record))
        if names := sorted({*before, *names}):
            write_json(path, {"examples": names})

    def write(self, results: dict[str, Any]) -> None:
        """Write the results, then remove the parts and the examples that are not listed."""
        kept = {Path(name).name for name in _strings(results["meta"]["examples"])}
        stale = self.owned() - kept
        # If the run is stopped after this, the next run still knows the stale files as its own.
        self.announce(_TRUTH, [f"{self.audio.name}/{name}" for name in stale])
        write_json(self.results, results)
        for name in stale:
            if _is_plain(self.audio / name):
                (self.audio / name).unlink()
        for method in self._all():
            for path, ours in ((self.part(method), _is_part), (self._record(method), _is_record)):
                if _is_plain(path) and _content(path, ours):
                    path.unlink()
        for folder in (self.audio, self.parts):
            with suppress(OSError):  # missing, or holds files of the user
                folder.rmdir()

    def _all(self) -> tuple[str, ...]:
        return (*self.systems, *BASELINES, _TRUTH)

    def _record(self, method: str) -> Path:
        return self.parts / f"{method}.examples.json"


def _is_plain(path: Path) -> bool:
    """Whether it is a regular file and not a link: the target of a link is the user's."""
    return path.is_file() and not path.is_symlink()


def _content(path: Path, ours: Callable[[Path], bool]) -> dict[str, Any]:
    """The JSON object in a file of ours; empty if there is none."""
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file() and ours(path):
            return json.loads(path.read_text(encoding="utf-8"))
    return {}


def _strings(value: Any) -> list[str]:
    """All strings in a nested JSON value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in _strings(item)]
