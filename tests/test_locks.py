"""Two processes never write one output: the second is refused, before any work."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_separate_script import music
from test_train_scripts import ROOT, codec_flags, error_of, mask_flags, prior_flags

import scripts
from data import layout
from jukebox_core import audio, locks
from jukebox_core.checkpoints import load_meta
from jukebox_core.locks import sole_writer
from jukebox_core.separation.settings import tuned_path
from jukebox_core.stages import Runner, Stage
from jukebox_core.training.tracking import METRICS
from scripts import (
    ablate,
    count_sums,
    evaluate,
    make_synthetic,
    prepare_slakh,
    separate,
    train_likelihood,
    train_mask,
    train_mask_network,
    train_prior,
    train_vqvae,
    tune,
)

HOLD = """\
import sys, time
from jukebox_core.locks import sole_writer
with sole_writer(sys.argv[1], inside=sys.argv[2] == "inside"):
    print("held", flush=True)
    time.sleep(60)
"""


def tree(folder):
    return {p.relative_to(folder): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


@pytest.mark.parametrize("inside", (False, True))
def test_a_second_writer_is_refused_and_nothing_stays(tmp_path, inside):
    output = tmp_path / "new" / ("name" * 60 if not inside else "folder")
    with sole_writer(output, inside=inside):
        with pytest.raises(BlockingIOError, match=f"another process is writing {output}: wait"):
            with sole_writer(output, inside=inside):
                raise AssertionError
        with sole_writer(tmp_path / "new" / "other", inside=inside):
            pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), sole_writer(output, inside=inside):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_link_and_its_target_are_one_output(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for inside in (False, True):
        with sole_writer(tmp_path / "folder", inside=inside), pytest.raises(BlockingIOError):
            with sole_writer(tmp_path / "link", inside=inside):
                raise AssertionError


def test_what_the_block_wrote_stays_and_so_does_a_file_of_the_user(tmp_path):
    with sole_writer(tmp_path / "a" / "b", inside=True):
        (tmp_path / "a" / "b" / "result").write_text("x")
    assert set(tree(tmp_path)) == {Path("a"), Path("a/b"), Path("a/b/result")}
    mine = tmp_path / "a" / "b" / ".lock"
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match="in the place of a lock"):
        with sole_writer(tmp_path / "a" / "b", inside=True):
            raise AssertionError
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("place", ("inside", "beside"))
def test_a_killed_process_leaves_nothing_locked(tmp_path, place):
    output = tmp_path / "output"
    words = [sys.executable, "-c", HOLD, output, place]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), sole_writer(output, inside=place == "inside"):
            raise AssertionError
        holder.kill()
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    with sole_writer(output, inside=place == "inside"):
        pass
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("error", (FileExistsError, FileNotFoundError))
def test_a_folder_that_another_owner_removes_meanwhile_is_made_again(tmp_path, monkeypatch, error):
    make, output = os.mkdir, tmp_path / "a" / "b"
    calls = []

    def interrupted(path, *args, **more):
        calls.append(path)
        if len(calls) == 1:
            raise error(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        return make(path, *args, **more)

    monkeypatch.setattr(os, "mkdir", interrupted)
    with sole_writer(output, inside=True):
        assert (output / ".lock").exists()
    assert len(calls) > 1 and not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a file system without new files")
def test_where_no_file_can_be_made_it_is_refused():
    for inside in (False, True):
        with pytest.raises(FileNotFoundError, match="no file can be made in the folder"):
            with sole_writer("/proc/self/new", inside=inside):
                raise AssertionError


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError), sole_writer(tmp_path / "file", inside=True):
        raise AssertionError


def _contend(output, number, rounds):
    """Add one to a file so many times, as two at once would not."""
    for _ in range(rounds):
        while True:
            try:
                with sole_writer(output / "new" / "locked", inside=True):
                    before = int(number.read_text())
                    os.sched_yield()
                    number.write_text(str(before + 1))
                break
            except BlockingIOError:
                time.sleep(0.0002)


def test_no_two_are_inside_while_the_file_comes_and_goes(tmp_path):
    number = tmp_path / "number"
    number.write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_contend, args=(tmp_path, number, 150)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert number.read_text() == "600" and not list(tmp_path.rglob("*.lock"))


def test_a_disk_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with sole_writer(tmp_path / "file"):
        assert "file cannot be locked (No locks available): let no" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(locks.os, "open", refuse)
    with pytest.raises(PermissionError) as caught, sole_writer(tmp_path / "file"):
        raise AssertionError
    assert caught.value.filename == str(tmp_path)


# Each program, while another process holds what it would write.


def check_refused(capsys, main, flags, output, inside, root):
    with sole_writer(output, inside=inside):
        before = tree(root)
        said = error_of(capsys, main([str(flag) for flag in flags]))
        assert f"another process is writing {output}" in said and "wait until it ends" in said
        assert tree(root) == before


@pytest.mark.parametrize(
    "program", (train_vqvae, train_prior, train_mask, train_likelihood, train_mask_network)
)
def test_a_second_training(tmp_path, tiny_data, tiny_neural_models, capsys, program):
    run, codec = tmp_path / "run", tiny_neural_models / "linearisation" / "vqvae"
    flags = {
        train_vqvae: codec_flags(tiny_data, run),
        train_prior: prior_flags(codec, tiny_data, run),
        train_mask: mask_flags(tiny_data, run),
        train_likelihood: ["--vqvae", codec, *mask_flags(tiny_data, run)],
        train_mask_network: ["--models", tiny_neural_models, *mask_flags(tiny_data, run)],
    }[program]
    check_refused(capsys, program.main, flags, run, True, tmp_path)


def test_a_second_counting_tuning_or_evaluation(tmp_path, tiny_data, tiny_models, capsys):
    models = ["--models", tiny_models, "--data", tiny_data]
    file = tmp_path / "counts.safetensors"
    counting = ["--vqvae", tiny_models / "linearisation/vqvae", "--data", tiny_data]
    check_refused(capsys, count_sums.main, [*counting, "--output", file], file, False, tmp_path)
    here = tmp_path / "models"
    here.mkdir()
    for family in ("linearisation", "reconstruction"):
        (here / family).symlink_to(tiny_models / family)
    tuned = tuned_path(here, "hybrid")
    flags = ["--models", here, "--data", tiny_data, "--method", "hybrid"]
    check_refused(capsys, tune.main, flags, tuned, False, tmp_path)
    results = tmp_path / "results.json"
    scored = [*models, "--output", results]
    check_refused(capsys, evaluate.main, scored, results, False, tmp_path)
    part = results.with_name("results.json (lass)")
    only = ["--methods", "lass", "--parts-only"]
    check_refused(capsys, evaluate.main, [*scored, *only], part, False, tmp_path)
    tables = tmp_path / "ablation"
    check_refused(capsys, ablate.main, [*models, "--output", tables], tables, True, tmp_path)


def test_two_processes_score_a_method_each(tmp_path, tiny_data, tiny_models):
    flags = ["--models", tiny_models, "--data", tiny_data, "--output", tmp_path / "results.json"]
    flags += ["--methods", "lass", "--parts-only", "--chunks", "1", "--chunk-codes", "128"]
    flags += ["--examples", "0", "--candidates", "2", "--device", "cpu"]
    with sole_writer(tmp_path / "results.json (hybrid)"):
        assert evaluate.main([str(flag) for flag in flags]) == 0
    assert set(tree(tmp_path)) == {Path("results.json.parts"), Path("results.json.parts/lass.json")}


def test_a_second_run_of_a_plan(tmp_path):
    runner = Runner([Stage("songs", ("make_synthetic", "--help"))], tmp_path, 1, scripts)
    with sole_writer(tmp_path, inside=True):
        before = tree(tmp_path)
        with pytest.raises(BlockingIOError, match=f"another process is writing {tmp_path}"):
            runner.run()
        assert tree(tmp_path) == before
    runner.run()
    assert not (tmp_path / ".lock").exists()


def test_a_second_preparation_of_songs(tmp_path, capsys):
    songs, data = tmp_path / "songs", tmp_path / "data"
    make = ["--output", songs, "--tracks", "1", "--seconds", "1", "--parts", "bass", "drums"]
    check_refused(capsys, make_synthetic.main, make, songs, True, tmp_path)
    assert make_synthetic.main([str(flag) for flag in make]) == 0
    flags = ["--slakh", songs, "--output", data, "--split", "1", "0", "0"]
    check_refused(capsys, prepare_slakh.main, flags, data, True, tmp_path)
    assert prepare_slakh.main([str(flag) for flag in flags]) == 0
    assert not list(tmp_path.rglob(".*"))


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("program", (make_synthetic, prepare_slakh))
def test_what_another_process_did_just_before_the_lock_is_seen(
    tmp_path, monkeypatch, capsys, program
):
    songs, data = tmp_path / "songs", tmp_path / "data"
    make = ["--output", str(songs), "--tracks", "1", "--seconds", "1", "--parts", "bass", "drums"]
    flags, other = make, ["--seed", "1"]
    if program is prepare_slakh:
        assert make_synthetic.main(make) == 0
        flags = ["--slakh", str(songs), "--output", str(data), "--split", "1", "0", "0"]
        other = ["--sample-rate", "16000"]
    real, done = layout.sole_writer, {}

    @contextmanager
    def late(output, **options):
        monkeypatch.setattr(layout, "sole_writer", real)
        assert program.main(flags) == 0  # another process, from its beginning to its end
        done.update(stamps(tmp_path))
        with real(output, **options):
            yield

    monkeypatch.setattr(layout, "sole_writer", late)
    assert program.main([*flags, *other]) == 1
    assert f"was written with another {other[0][2:].replace('-', '_')}" in capsys.readouterr().err
    assert stamps(tmp_path).keys() == done.keys()
    monkeypatch.setattr(layout, "sole_writer", late)
    tracks = [path for path in done if "Track" in str(path)]
    assert program.main(flags) == 0  # nothing is left to do
    assert tracks and all(stamps(tmp_path)[path] == done[path] for path in tracks)


def test_a_second_separation_of_a_song(tmp_path, tiny_models, capsys):
    songs, stems = tmp_path / "songs", tmp_path / "stems"
    for name in "abc":
        audio.save(songs / f"{name}.wav", music(1, 2000, 1), 22_050)
    flags = ["--models", tiny_models, "--output", stems, "--method", "lass", "--device", "cpu"]
    flags = [str(flag) for flag in [*flags, "--candidates", "2", songs]]
    with sole_writer(stems / "b"):
        assert separate.main(flags) == 1
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1 and f"b.wav: another process is writing {stems / 'b'}" in errors[0]
    assert sorted(path.name for path in stems.iterdir()) == ["a", "c"]
    assert separate.main(flags) == 0
    assert sorted(path.name for path in stems.iterdir()) == ["a", "b", "c"]


def test_what_another_process_finished_meanwhile_is_not_done_again(
    tmp_path, tiny_models, monkeypatch, capsys
):
    song, stems = tmp_path / "song.wav", tmp_path / "stems"
    audio.save(song, music(1, 2000, 1), 22_050)
    flags = ["--models", tiny_models, "--output", stems, "--method", "lass", "--device", "cpu"]
    flags = [str(flag) for flag in [*flags, "--candidates", "2", song]]
    assert separate.main(flags) == 0
    before, real = tree(stems), separate.make_plan

    def planned_before(args, ranks):
        plan = real(args, ranks)
        return plan._replace(done=[], shares=[plan.done])

    monkeypatch.setattr(separate, "make_plan", planned_before)
    capsys.readouterr()
    assert separate.main(flags) == 0
    assert f"{song}: finished in {stems / 'song'}" in capsys.readouterr().out
    assert tree(stems) == before


def test_a_training_of_two_processes_goes_on_while_a_second_is_refused(tmp_path, tiny_data):
    run, metrics = tmp_path / "run", tmp_path / "run" / METRICS
    flags = codec_flags(tiny_data, run, "--train.steps", "8", "--devices", "2", "--threads", "1")
    command = [sys.executable, "-m", "scripts.train_vqvae", *flags]
    pipes = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, **pipes)
    while not (metrics.is_file() and "\n1," in metrics.read_text()):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # however slow this machine is
    second = subprocess.run(command, timeout=240, **pipes)
    first.send_signal(signal.SIGCONT)
    errors = [line for line in second.stderr.splitlines() if line.startswith("error: ")]
    assert second.returncode == 1 and errors == [
        f"error: another process is writing {run}: wait until it ends, or choose another output"
    ]
    said = first.communicate(timeout=240)
    assert first.returncode == 0 and "step 8" in said[0], said
    assert load_meta(run)["finished"] and not (run / ".lock").exists()
