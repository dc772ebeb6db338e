"""Renew the locks: every package of the environment with its version and SHA-256 digests.

    make lock

`requirements.lock` has all packages for Python 3.10 to 3.13 on Linux, macOS and Windows;
`requirements-cuda.lock` the CUDA libraries that PyPI's torch for Linux needs besides. uv resolves
them, within `constraints.txt`. PyPI lists no CPU-only torch for Linux: the digest of the wheel that
pip takes here, with PIP_FLAGS, is added if it is another.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CUDA = re.compile(r"(cuda|nvidia)-|triton==")
WITHOUT_DEPENDENCIES = ("tinysoundfont", "pyaudio")
"""A package that declares one which it does not need here, and that one."""
HEAD = "# Made by `make lock`. To install: pip install --require-hashes --no-deps -r {}\n"


def resolve(uv: Path, more: Path) -> list[str]:
    """The lines of every package: its name, version and marker first, then its digests."""
    more.write_text(WITHOUT_DEPENDENCIES[0], encoding="utf-8")
    command = [uv, "pip", "compile", "pyproject.toml", more, "--extra", "dev", "--universal"]
    command += ["--python-version", "3.10", "--generate-hashes", "--constraints", "constraints.txt"]
    command += ["--no-header", "--no-annotate", "--quiet", "--no-emit-index-url"]
    command += ["--no-emit-package", WITHOUT_DEPENDENCIES[1]]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return re.split(r"\n(?=\S)", done.stdout.strip())


def digest_here(folder: Path, requirement: str) -> str:
    """SHA-256 of the wheel that pip takes on this machine."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    flags = shlex.split(os.environ.get("PIP_FLAGS", ""))
    subprocess.run([*pip, *flags, requirement], check=True)
    (wheel,) = folder.glob("*.whl")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def main() -> None:
    """Write both files."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        venv.create(folder / "venv", with_pip=True)
        programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", "uv"], check=True)
        packages = resolve(programs / "uv", folder / "more.in")
        place = next(n for n, lines in enumerate(packages) if lines.startswith("torch=="))
        (folder / "torch").mkdir()
        digest = digest_here(folder / "torch", packages[place].split()[0])
    if digest not in packages[place]:
        packages[place] += f" \\\n    --hash=sha256:{digest}"
    for name, of_cuda in (("requirements.lock", False), ("requirements-cuda.lock", True)):
        chosen = [lines for lines in packages if bool(CUDA.match(lines)) == of_cuda]
        text = HEAD.format(name) + "\n".join(chosen) + "\n"
        (ROOT / name).write_text(text, encoding="utf-8")
        print(f"{len(chosen)} packages in {name}")


if __name__ == "__main__":
    main()
