"""C files that are compiled on first use, with the system's C compiler (`CC`, default `cc`).

That takes about a second; the library goes into a cache folder. Callers have the same in PyTorch,
for machines without a compiler and for the environment variable JUKEBOX_CORE_KERNELS=off.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from jukebox_core.caches import cache_folder
from jukebox_core.files import atomic_path

HEADER = Path(__file__).with_name("vectors.h")
_FLAGS = (
    "-O3 -march=native -fopenmp -shared -fPIC -fno-math-errno -fno-trapping-math -fno-signed-zeros "
    "-fassociative-math -freciprocal-math"
)

log = logging.getLogger(__name__)
T = TypeVar("T")


def load(source: Path, wrap: Callable[[ctypes.CDLL], T]) -> T | None:
    """`wrap(library)` for the compiled library of a C file.

    None where the file cannot be compiled or loaded, or is not wanted.
    """
    if os.environ.get("JUKEBOX_CORE_KERNELS", "").lower() in ("off", "0", "torch"):
        return None
    try:
        return wrap(ctypes.CDLL(str(_compiled(source))))
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        log.info("%s is not compiled (%s): plain PyTorch instead", source.name, error)
        return None


def function_of(
    library: ctypes.CDLL, name: str, pointers: int, integers: int, *more: Any
) -> Callable[..., Any]:
    """A function of the library that takes pointers, then 64-bit integers, then `more`."""
    function = library[name]
    function.argtypes = [*[ctypes.c_void_p] * pointers, *[ctypes.c_int64] * integers, *more]
    function.restype = None if pointers else ctypes.c_int
    return function


def _compiled(source: Path) -> Path:
    """The shared library, compiled for this processor unless it is there."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    texts = (path.read_text(encoding="utf-8") for path in (source, HEADER))
    parts = (*texts, _FLAGS, *compiler, _processor())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    path = cache_folder() / f"{source.stem}-{key[:16]}.so"
    if not path.is_file():
        with atomic_path(path) as temporary:
            command = [*compiler, *_FLAGS.split(), f"-I{HEADER.parent}"]
            command += ["-o", str(temporary), str(source), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
    return path


def _processor() -> str:
    """The processor, which `-march=native` depends on: machines may share a home folder."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()} {platform.node()}"
