"""The files of an evaluation, and which of those that exist a former evaluation left.

    OUTPUT                              the results, which name their examples
    OUTPUT.parts/METHOD.json            a method that is done, until all are
    OUTPUT.parts/METHOD.examples.json   names of its examples, until the results have them
    NAME_audio/NN_METHOD_SOURCE.flac    examples, for OUTPUT = NAME.json

Everything else is the user's: files of another kind, and examples that neither the results nor a
record names. It is neither replaced nor removed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jukebox_core.files import check_replaceable, check_writable, json_with, write_json
from scripts._models import METHODS
from scripts._results import NAMES

__all__ = ["EXAMPLES", "HEARD", "PLAYED", "Outputs"]

EXAMPLES = 3
"""Chunks whose audio is written, by default."""
HEARD = ("nmf", "supervised")
"""Baselines that examples are written of."""
PLAYED = {("selected", True): "", ("oracle", False): "_oracle"}
"""{(estimate, refined): suffix of its examples}."""
_TRUTH = "truth"  # and the mixture
_EXAMPLE = re.compile(r"\d{2,}_[^/\\]+\.(flac|npz)")
_is_results = json_with("meta.examples", "rows", "chunks")
_is_part = json_with("key", "chunks")
_is_record = json_with("examples")


@dataclass(frozen=True)
class Outputs:
    """Where an evaluation writes.

    results: the JSON file. sources: of the data set.
    """

    results: Path
    sources: Sequence[str]

    @property
    def parts(self) -> Path:
        """Folder of the parts and of the records of examples."""
        return self.results.with_name(self.results.name + ".parts")

    @property
    def audio(self) -> Path:
        """Folder of the examples."""
        return self.results.with_name(self.results.stem + "_audio")

    def part(self, method: str) -> Path:
        """File of a method that is done."""
        return self.parts / f"{method}.json"

    def example(self, i: int, group: str, name: str, suffix: str = "flac") -> str:
        """File of an example, relative to the folder of the results."""
        stem = "_".join(part for part in (f"{i:02d}", group, name) if part)
        return f"{self.audio.name}/{stem}.{suffix}"

    def examples(self, method: str, count: int) -> list[str]:
        """All files of a method's first `count` examples; `truth` has the mixture as well."""
        suffixes = tuple(PLAYED.values()) if method in METHODS else ("",)
        names = []
        for i in range(count):
            names += [self.example(i, method + x, s) for x in suffixes for s in self.sources]
            if method in METHODS:
                names.append(self.example(i, method, "uncertainty", "npz"))
            elif method == _TRUTH:
                names.append(self.example(i, "", "mixture"))
        return names

    def check(self, methods: Iterable[str], baselines: Collection[str], examples: int) -> None:
        """Refuse to replace what no former evaluation is known to have left.

        Args:
            methods: systems that will be scored.
            baselines: scored beside them.
            examples: how many chunks' examples will be written at most.

        Raises:
            FileExistsError: a file of another kind lies where one will be written.
            OSError: the files cannot be written there.
        """
        check_replaceable(self.results, _is_results, "the results of an evaluation")
        scored = [*methods, *baselines, *(["codec_lass"] if "codec" in baselines else [])]
        for method in scored:
            check_replaceable(self.part(method), _is_part, "a part of an evaluation")
            check_replaceable(self._record(method), _is_record, "a record of examples")
        check_replaceable(self._record(_TRUTH), _is_record, "a record of examples")
        if examples < 1:
            return
        check_writable(self.audio / "00")
        heard = [method for method in scored if method in METHODS or method in HEARD]
        first = [name for method in (*heard, _TRUTH) for name in self.examples(method, 1)]
        endings = {Path(name).name.removeprefix("00_") for name in first}
        owned = self.owned()
        for path in _entries(self.audio):
            number, _, ending = path.name.partition("_")
            if ending not in endings or not number.isdecimal():
                continue
            written = number == f"{int(number):02d}" and int(number) < examples
            if written and (path.name not in owned or not _is_plain(path)):
                raise FileExistsError(
                    f"{path} exists and is no example that a former evaluation into "
                    f"{self.results} wrote: choose another output, or move the file"
                )

    def owned(self) -> set[str]:
        """Names of the examples that former runs wrote, by the results and the records there."""
        named = _strings(_content(self.results, _is_results).get("meta", {}).get("examples"))
        for method in (*NAMES, _TRUTH):
            named += _strings(_content(self._record(method), _is_record).get("examples"))
        paths = [PurePosixPath(name) for name in named]
        return {
            path.name
            for path in paths
            if path == PurePosixPath(self.audio.name, path.name) and _EXAMPLE.fullmatch(path.name)
        }

    def announce(self, method: str, names: Iterable[str]) -> None:
        """Record examples before they are written, so that a run that is stopped owns them."""
        path = self._record(method)
        before = _strings(_content(path, _is_record).get("examples"))
        if names := sorted({*before, *names}):
            write_json(path, {"examples": names})

    def write(self, results: dict[str, Any]) -> None:
        """Write the results, then remove the parts, and examples that are not among theirs."""
        kept = {Path(name).name for name in _strings(results["meta"]["examples"])}
        stale = self.owned() - kept
        # The records outlive the old results: stopped here, the next run still knows these files.
        self.announce(_TRUTH, [f"{self.audio.name}/{name}" for name in stale])
        write_json(self.results, results)
        for name in stale:
            if _is_plain(self.audio / name):
                (self.audio / name).unlink()
        for method in (*NAMES, _TRUTH):
            for path, ours in ((self.part(method), _is_part), (self._record(method), _is_record)):
                if _is_plain(path) and _content(path, ours):
                    path.unlink()
        for folder in (self.audio, self.parts):
            with suppress(OSError):  # it is not there, or holds files of the user's
                folder.rmdir()

    def _record(self, method: str) -> Path:
        return self.parts / f"{method}.examples.json"


def _entries(folder: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        yield from sorted(Path(entry.path) for entry in entries)


def _is_plain(path: Path) -> bool:
    """A file and no link: what a link of the user's points to is the user's."""
    return path.is_file() and not path.is_symlink()


def _content(path: Path, ours: Any) -> dict[str, Any]:
    """A JSON object of ours; empty where there is none."""
    try:
        if path.is_file() and ours(path):
            return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        pass
    return {}


def _strings(value: Any) -> list[str]:
    """All strings inside."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in _strings(item)]
