"""The locks name every package with its digests; the container is built from them."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jukebox_core import audio

ROOT = Path(__file__).resolve().parent.parent
MACHINES = (("linux", "Linux", "posix"), ("darwin", "Darwin", "posix"), ("win32", "Windows", "nt"))
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def locked(name):
    """[(requirement, its digests), ...] of a lock; nothing else is in it."""
    lines = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    assert lines[0].startswith("# Made by `make lock`")
    found = []
    for line in lines[1:]:
        requirement, *digests = line.split(" --hash=")
        assert digests and all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", d) for d in digests), line
        found.append(Requirement(requirement))
        assert re.fullmatch(r"==[^*]+", str(found[-1].specifier)), line
    return found


def environments():
    """What markers may ask for, on every supported Python and machine."""
    for python, (platform, system, os_name) in itertools.product(PYTHONS, MACHINES):
        yield {
            "python_version": python,
            "python_full_version": f"{python}.9",
            "sys_platform": platform,
            "platform_system": system,
            "os_name": os_name,
            "platform_machine": "arm64" if platform == "darwin" else "x86_64",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }


def versions(requirements, environment):
    """{package: version} of those for an environment; each package once."""
    chosen = [r for r in requirements if r.marker is None or r.marker.evaluate(environment)]
    names = [canonicalize_name(r.name) for r in chosen]
    assert len(names) == len(set(names))
    return {
        name: str(r.specifier).removeprefix("==") for name, r in zip(names, chosen, strict=True)
    }


def wanted():
    """What pyproject.toml asks for, tests and documents included, and the pins."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("dependencies", "app", "docs", "hub", "mpi", "dev"):
        listed = re.search(rf"^{name} = \[(.*?)\]\n", text, re.M | re.S)[1]
        listed = re.sub(r"^\s*#.*$", "", listed, flags=re.M)
        yield from (Requirement(r) for r in re.findall(r'"([^"]+)"', listed))
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            yield Requirement(line)


def test_the_lock_has_all_that_is_wanted_on_every_python_and_machine():
    requirements = locked("requirements.lock")
    asked = [r for r in wanted() if r.name != "latent-separation"]
    assert len(asked) > 40
    for environment in environments():
        found = versions(requirements, environment)
        for requirement in asked:
            if requirement.marker is None or requirement.marker.evaluate(environment):
                name = canonicalize_name(requirement.name)
                if name in ("mpi4py", "mpich") and environment["os_name"] == "nt":
                    continue  # the marker is that of the extra
                assert requirement.specifier.contains(found[name], prereleases=True), requirement


def test_cuda_libraries_have_a_lock_of_their_own():
    for name, expected in (("requirements.lock", False), ("requirements-cuda.lock", True)):
        found = {re.match(r"(cuda|nvidia)-|triton$", r.name) is not None for r in locked(name)}
        assert found == {expected}
    for environment in environments():
        libraries = versions(locked("requirements-cuda.lock"), environment)
        assert bool(libraries) == (environment["sys_platform"] == "linux")


# The container


def instructions():
    """[(instruction, the rest), ...] of the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]


def copy_source(target):
    """Do `COPY . .` with what .dockerignore lets through."""
    everything, *kept, compiled = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert everything == "*" and compiled == "**/__pycache__"
    assert all(name.startswith("!") for name in kept)
    for name in (name[1:] for name in kept):
        path = ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, target / name, ignore=ignored)
        else:
            shutil.copy(path, target / name)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the container is a Linux one")
def test_the_steps_of_the_container_work_in_an_empty_folder(tmp_path):
    source, music, site = (tmp_path / name for name in ("source", "music", "site"))
    for folder in (source, music):
        folder.mkdir()
    steps = instructions()
    assert [name for name, _ in steps].index("USER") < [name for name, _ in steps].index(
        "ENTRYPOINT"
    )
    entry = None
    for name, rest in steps:
        if name == "COPY" and rest == ". .":
            copy_source(source)
        elif name == "COPY":
            shutil.copy(ROOT / rest.split()[0], source)
        elif name == "RUN" and "requirements.lock" in rest:
            # the packages are here; pip only has to read every line of the lock
            assert "--require-hashes" in rest and (source / "requirements.lock").is_file()
        elif name == "RUN" and rest.startswith("pip install"):
            pip = [sys.executable, "-m", *rest.split(), "--quiet", "--target", str(site)]
            subprocess.run(pip, cwd=source, check=True)
        elif name == "ENTRYPOINT":
            (entry,) = json.loads(rest)
        else:
            assert name in ("FROM", "WORKDIR", "ARG", "USER", "RUN")
    shutil.rmtree(source)
    noise = 0.1 * torch.randn(1, 22_050, generator=torch.Generator().manual_seed(0))
    audio.save(music / "song.wav", noise, 22_050)
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(site / "bin" / entry), "separate", "song.wav"]
    command += ["--candidates", "1", "--shifts", "1"]
    subprocess.run(command, cwd=music, env=environment, check=True, capture_output=True)
    stems = sum(
        audio.load(music / f"stems/song/{name}.wav")[0] for name in ("bass", "drums", "other")
    )
    assert torch.allclose(stems, audio.load(music / "song.wav")[0], atol=1e-6)
