"""Many short files among bad ones, shared by two processes: exactly the good ones come out, once.

SEPARATION_FILES=200 in the environment takes so many files; the suite takes fewer.
"""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import torch
from test_count_ranks import launched
from test_separate_script import FAST, REPOSITORY, music

from jukebox_core import audio

RATE = 22_050
FILES = int(os.environ.get("SEPARATION_FILES", "24"))
# Runs in each process: nobody may read one folder, and files vanish once they were found.
WRAPPER = """\
import os, sys
from scripts import separate
closed, gone, *flags = sys.argv[1:]
scan, plan = os.scandir, separate.make_plan
def scandir(path="."):
    if str(path) == closed:
        raise PermissionError(13, "Permission denied", closed)
    return scan(path)
def make_plan(*args):
    made = plan(*args)
    for path in filter(None, gone.split(os.pathsep)):
        if os.path.exists(path): os.unlink(path)
    return made
os.scandir, separate.make_plan = scandir, make_plan
sys.exit(separate.main(flags))
"""


def damage(path, kind):
    """Make the file at `path` bad; what its error says."""
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:60])
        return "damaged|cannot|truncated"
    if kind == "noise":
        path.write_bytes(random.Random(0).randbytes(3000))
        return "cannot|not audio|damaged"
    if kind == "empty":
        path.write_bytes(b"")
        return "empty"
    if kind == "silent":
        audio.save(path, torch.zeros(1, 3000), RATE)
        return "silent throughout"
    return "there is no audio file|No such file"  # it vanishes


def test_exactly_the_good_files_come_out_each_once(tiny_models, tmp_path):
    songs, out = tmp_path / "songs", tmp_path / "out"
    names = [f"{n % 7}/{n:03}" for n in range(FILES)]
    for number, name in enumerate(names):
        path = songs / f"{name}.{('wav', 'flac')[number % 2]}"
        audio.save(path, music(0.05 + 0.01 * (number % 5), RATE, 1 + number % 2, number), RATE)
    bad = {}
    kinds = ("cut", "noise", "empty", "silent", "gone")
    for number, name in enumerate(random.Random(1).sample(names, max(len(kinds), FILES // 6))):
        (path,) = songs.glob(f"{name}.*")
        kind = kinds[number % len(kinds)]
        bad[path] = kind, damage(path, kind)
    closed = songs / "closed"
    audio.save(closed / "x.wav", music(0.05, RATE, 1), RATE)
    gone = [str(path) for path, (kind, _) in bad.items() if kind == "gone"]

    words = [closed, os.pathsep.join(gone), songs, "--models", tiny_models, "--output", out]
    words += ["--method", "lass", "--threads", "1", *FAST]
    command = [sys.executable, "-c", WRAPPER, *map(str, words)]
    processes = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for env in launched(2)
    ]
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [1, 1], said

    good = sorted(set(names) - {str(p.relative_to(songs).with_suffix("")) for p in bad})
    done = re.findall(r"^(\S+) -> ", "".join(text for text, _ in said), re.MULTILINE)
    assert sorted(str(Path(p).relative_to(songs).with_suffix("")) for p in done) == good
    assert all(" -> " in text for text, _ in said), "one process did all"
    assert sorted(str(p.parent.relative_to(out)) for p in out.rglob("separation.json")) == good
    assert len([p for p in out.rglob("*") if p.is_file()]) == 3 * len(good)
    for name in good:
        (path,) = songs.glob(f"{name}.*")
        stems = [audio.load(stem)[0] for stem in (out / name).glob("*.wav")]
        torch.testing.assert_close(sum(stems), audio.load(path)[0], atol=1e-4, rtol=0)

    errors = [line for line in said[0][1].splitlines() if line.startswith("error: ")]
    assert not [line for line in said[1][1].splitlines() if line.startswith("error: ")]
    assert len(errors) == len(bad) + 1
    for path, why in [*((p, w) for p, (_, w) in bad.items()), (closed, "Permission denied")]:
        (line,) = [line for line in errors if str(path) in line]
        assert re.search(why, line), line

    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert again.returncode == 1 and " -> " not in again.stdout
    assert again.stdout.count(": finished in ") == len(good)
