"""scripts.app: the stems and errors of scripts.separate, in a page that asks nobody else."""

import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
import torch
from browsing import DESKTOP, PHONE, Watched, free_port
from test_separate_script import BAD, FAST, bad_mixture, music

from jukebox_core import audio
from jukebox_core.audio.pictures import COLUMNS, ROWS, levels
from jukebox_core.audio.stream import open_audio
from jukebox_core.separation.separator import Separator
from scripts import app, separate
from scripts._methods import METHODS, PUBLISHED_METHODS, complete_methods
from scripts.app.jobs import Cancelled, Job, JobQueue, Limits, Refused

REPOSITORY = Path(__file__).parent.parent
SONG = "Ünı  mix (1) 音 & b's.wav"


GRADIOS_OWN = "Method not implemented."
"""A warning of gradio's own client, whenever a stream of events ends."""


@pytest.fixture
def queue(tiny_models, tmp_path):
    """Queues on the tiny models, with fewer candidates."""
    made = []

    def make(limits=None, keep=4, seed=0):
        def build(method):
            return METHODS[method].load_separator(tiny_models, candidates=2)

        made.append(JobQueue(tmp_path / "results", build, limits or Limits(), seed=seed, keep=keep))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("method", PUBLISHED_METHODS)
def test_the_stems_are_those_of_the_command(tiny_models, tmp_path, queue, method):
    song = tmp_path / SONG
    audio.save(song, music(2, 44_100, 2), 44_100)
    flags = ["--method", method, "--models", str(tiny_models), "--output", str(tmp_path / "out")]
    assert separate.main([*flags, "--seed", "3", *FAST[:4], str(song)]) == 0
    result = queue(seed=3).submit(song, method).result()
    for source in result.sources:
        written = (tmp_path / "out" / song.stem / f"{source}.wav").read_bytes()
        assert result.file(source).read_bytes() == written
    assert (result.name, result.rate, result.channels) == (song.stem, 44_100, 2)
    assert result.seconds == 2 and result.highest == 11_025
    assert torch.equal(audio.load(result.file("mixture"))[0], audio.load(song)[0])


@pytest.mark.parametrize("kind", [kind for kind, _ in BAD])
def test_the_errors_are_those_of_the_command(
    tiny_models, tmp_path, queue, monkeypatch, capsys, kind
):
    monkeypatch.chdir(tmp_path)
    bad = bad_mixture(kind, tmp_path)
    flags = ["--models", str(tiny_models), "--output", "out", *FAST]
    assert separate.main([*flags, bad.name]) == 1
    with pytest.raises(Refused) as caught:
        queue().submit(bad, "hybrid").result()
    assert capsys.readouterr().err == f"error: {caught.value}\n"
    assert not list((tmp_path / "results").glob("*"))


def test_a_damaged_file_is_told_as_by_the_command(
    tiny_models, tmp_path, queue, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    audio.save(tmp_path / "whole.flac", music(20, 22_050, 1), 22_050)
    content = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    assert separate.main(["--models", str(tiny_models), "--output", "out", "cut.flac"]) == 1
    with pytest.raises(Refused, match="damaged") as caught:
        queue().submit(tmp_path / "cut.flac", "hybrid").result()
    assert capsys.readouterr().err == f"error: {caught.value}\n"


def test_limits_say_what_came_and_what_to_do(tmp_path, queue):
    song = tmp_path / "long.wav"
    audio.save(song, music(2.5, 22_050, 1), 22_050)
    with pytest.raises(Refused, match=r"^long\.wav .* 2\.5 s, .* 2: .* --max-seconds$"):
        queue(Limits(seconds=2)).submit(song, "lass").result()
    with pytest.raises(Refused, match=r"^long\.wav .* 0\.2 MB, .* 0\.1: .* --max-megabytes$"):
        queue(Limits(megabytes=0.1)).submit(song, "lass").result()


def test_separators_are_loaded_once_and_old_results_go(tiny_models, tmp_path):
    loaded = []

    def build(method):
        loaded.append(method)
        return METHODS[method].load_separator(tiny_models, candidates=1)

    song = tmp_path / "m.wav"
    audio.save(song, music(0.5, 22_050, 1), 22_050)
    queue = JobQueue(tmp_path / "results", build, Limits(), keep=2)
    jobs = [queue.submit(song, method) for method in ("lqvae", "hybrid", "lqvae", "lqvae")]
    assert queue.ahead(jobs[-1]) > 0
    for job in jobs:
        job.result()
    queue.close()
    assert loaded == ["lqvae", "hybrid"]
    left = {path.resolve() for path in (tmp_path / "results").iterdir()}
    assert left == {
        made.folder.resolve() for job in jobs[2:] for made in (job.opening, job.result())
    }
    assert {job.fraction for job in jobs} == {1.0}


@pytest.mark.parametrize("rate", (32_000, 44_100))
def test_the_first_window_can_be_heard_before_the_rest(
    tiny_models, tmp_path, queue, monkeypatch, rate
):
    """Its stems are those of a song that ends there; a song of one window has no opening."""
    separator = METHODS["lass"].load_separator(tiny_models, candidates=2)
    frames = separator.window * separator.codec.config.hop * rate // separator.sample_rate
    windows, separate = [], Separator._windows

    def counted(self, group, run):
        windows.append(len(group))
        return separate(self, group, run)

    monkeypatch.setattr(Separator, "_windows", counted)
    song, start = tmp_path / "song.wav", tmp_path / "start.wav"
    audio.save(song, music(0.5, rate, 2), rate)
    audio.save(start, audio.load(song)[0][:, :frames], rate)
    here = queue(keep=2)
    whole, part = (here.submit(path, "lass") for path in (song, start))
    result, opening = whole.result(), whole.opening
    assert result.seconds == 0.5 and opening.seconds == frames / rate < 0.2
    assert part.result().seconds == opening.seconds and part.opening is None
    for track in ("mixture", *separator.sources):
        assert opening.file(track).read_bytes() == part.result().file(track).read_bytes()
    windows.clear()
    here.submit(start, "lass").result()
    assert sum(windows) == 1
    # The first song is gone, with its opening.
    assert opening.folder != result.folder and not opening.folder.exists()
    assert len([*(tmp_path / "results").iterdir()]) == 2


def test_a_job_is_cancelled_at_once_and_the_next_one_runs(tmp_path, queue):
    song, short = tmp_path / "long.wav", tmp_path / "short.wav"
    audio.save(song, music(120, 22_050, 1), 22_050)
    audio.save(short, music(0.5, 22_050, 1), 22_050)
    here = queue()
    running, waiting, last = (here.submit(path, "hybrid") for path in (song, song, short))
    while not running.fraction:
        time.sleep(0.01)
    assert 0 < running.fraction < 1
    waiting.cancel()
    running.cancel()
    for job in (running, waiting):
        with pytest.raises(Cancelled):
            job.result()
    assert last.result().seconds == 0.5
    kept = {running.opening.folder, last.opening.folder, last.result().folder}
    assert {path.resolve() for path in (tmp_path / "results").iterdir()} == kept


def test_methods_without_their_parts_are_not_offered(tiny_models, tmp_path):
    ready, missing = complete_methods(tiny_models)
    assert list(ready) == ["lqvae", "lass", "hybrid"] and not missing
    models = shutil.copytree(tiny_models, tmp_path / "models")
    (models / "linearisation" / "counts.safetensors").unlink()
    (models / "reconstruction" / "prior_bass" / "weights.safetensors").unlink()
    ready, missing = complete_methods(models)
    assert ready == {"lqvae": ("bass", "drums")}
    for method, why in missing.items():
        with pytest.raises(FileNotFoundError) as caught:
            METHODS[method].load_separator(models)
        assert why == str(caught.value)
    with pytest.raises(FileNotFoundError, match="has the parts of no method"):
        complete_methods(tmp_path / "nothing")


def test_pictures_of_any_length_show_tones_where_they_are(tmp_path):
    rate, seconds = 44_100, 40
    time = torch.arange(rate * seconds) / rate
    tone = torch.where(time < seconds / 2, 0.5, 0.05) * torch.sin(2 * torch.pi * 1000 * time)
    audio.save(tmp_path / "tone.wav", tone[None], rate)
    with open_audio(tmp_path / "tone.wav") as reader:
        whole = levels(reader.blocks(1 << 30), len(tone), rate, 11_025)
        pieces = levels(reader.blocks(777), len(tone), rate, 11_025)
    torch.testing.assert_close(whole, pieces, atol=0.01, rtol=0)
    assert whole.shape == (ROWS, COLUMNS)
    row = np.abs(np.geomspace(40, 11_025, ROWS) - 1000).argmin()
    assert (whole[:, 10:-10].argmax(0) - row).abs().max() <= 1
    loud = whole.max(0).values
    assert loud[100].item() == pytest.approx(-6, abs=1.5)
    assert (loud[100] - loud[900]).item() == pytest.approx(20, abs=0.1)


def test_what_goes_wrong_gives_the_button_back(tmp_path):
    pytest.importorskip("gradio")
    from scripts.app import blocks

    def broken(method):
        raise RuntimeError("out of <memory>")

    queue = JobQueue(tmp_path, broken, Limits())
    job = queue.submit(tmp_path / "m.wav", "hybrid")
    with pytest.raises(RuntimeError):
        job.result()
    said, _, start, stop, running = blocks._ended(job)
    queue.close()
    assert "RuntimeError: out of &lt;memory&gt;" in said and running is None
    assert start["visible"] and not stop["visible"]


# The command.


def test_it_listens_on_this_computer_alone_unless_told_otherwise(tmp_path):
    assert app.Args(models=tmp_path).host == "127.0.0.1"


def test_without_gradio_the_extra_is_named(tiny_models):
    code = (
        "import sys; sys.modules['gradio'] = None\nfrom scripts import app\n"
        f"sys.exit(app.main(['--models', {str(tiny_models)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: scripts.app needs gradio, which is not installed: pip install gradio\n"
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--models", "nowhere"], "has the parts of no method"),
        (["--max-seconds", "0"], "max_seconds is 0"),
        (["--examples", "nowhere"], "there is no audio file nowhere"),
        (["--device", "cuda:77"], "cannot be used here"),
        (["--port", "PORT"], "--port"),
    ],
)
def test_wrong_flags_are_one_line(tiny_models, capsys, flags, said):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        flags = [port if flag == "PORT" else flag for flag in flags]
        assert app.main(["--models", str(tiny_models), *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


# The page in a browser.


@pytest.fixture(scope="module")
def page_of(tiny_models, tiny_data, tmp_path_factory):
    """(address, folder of the songs, addresses that the server connected to)."""
    pytest.importorskip("gradio")
    songs = tmp_path_factory.mktemp("songs")
    audio.save(songs / SONG, music(3, 22_050, 1), 22_050)
    (songs / "notes.txt").write_text("this is not audio")
    audio.save(songs / "long.wav", music(31, 8_000, 1), 8_000)
    soundfile.write(songs / "large.wav", np.zeros(600_000), 22_050)
    asked = []
    connect = socket.socket.connect

    def watched(self, address):
        asked.append(address[0] if isinstance(address, tuple) else address)
        return connect(self, address)

    args = app.Args(
        models=tiny_models,
        port=free_port(),
        device="cpu",
        candidates=2,
        max_seconds=30,
        max_megabytes=1,
        examples=(tiny_data,),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", watched)
        with app.opened(args) as address:
            yield address, songs, asked


def opened_page(browser, address, size, **options):
    page = browser.new_page(viewport=size, **options)
    watched = Watched(page)
    page.goto(address)
    page.get_by_role("button", name="Separate").wait_for()
    return page, watched


def separated(page, song, method="Hybrid"):
    """Upload, choose, press, wait."""
    page.locator("input[type=file]").set_input_files(song)
    page.get_by_text(Path(song).suffix, exact=False).first.wait_for()
    page.get_by_label(method, exact=True).check()
    page.get_by_role("button", name="Separate").click()


def checked(watched, address):
    """Nothing was complained about, and nobody else was asked."""
    own = urlsplit(address).netloc
    others = [
        url
        for url in watched.requests
        if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).netloc != own
    ]
    assert not others and set(watched.complaints) <= {GRADIOS_OWN}
    assert len(watched.requests) > 5  # it does watch


PLAYED = """async player => {
  player.muted = true;
  await player.play();
  const start = player.currentTime, until = Date.now() + 10000;
  while (player.currentTime <= start + 0.1 && Date.now() < until)
    await new Promise(go => setTimeout(go, 50));
  const others = [...document.querySelectorAll("audio")].filter(x => x !== player && !x.paused);
  return [player.currentTime - start, others.length];
}"""


def test_a_song_from_drop_to_download(browser, page_of, tiny_models, tmp_path):
    address, songs, asked = page_of
    assert urlsplit(address).hostname == "127.0.0.1"
    page, watched = opened_page(browser, address, DESKTOP)
    separated(page, songs / SONG, "LASS")
    page.locator(".song:not(.opening) audio").nth(2).wait_for(timeout=60_000)
    assert page.locator(".song h2").inner_text().split() == SONG.removesuffix(".wav").split()
    assert page.locator(".song audio").count() == 3
    for player in page.locator(".song audio").all():
        page.wait_for_function("x => x.readyState >= 1", arg=player.element_handle())
        assert player.evaluate("x => x.duration") == pytest.approx(3, abs=0.01)
        moved, others = player.evaluate(PLAYED)
        assert moved > 0.1 and others == 0
    drums = page.locator("[data-track=drums]")
    drums.locator(".picture").click()  # its middle
    assert drums.locator("audio").evaluate("x => x.currentTime") == pytest.approx(1.5, abs=0.3)
    for picture in page.locator(".picture img").all():
        assert picture.evaluate("async x => { await x.decode(); return x.naturalHeight }") == ROWS
    flags = ["--method", "lass", "--models", str(tiny_models), "--output", str(tmp_path)]
    assert separate.main([*flags, *FAST[:4], str(songs / SONG)]) == 0
    for source in ("bass", "drums"):
        with page.expect_download() as download:
            page.locator(f"[data-track={source}] a").click()
        name = SONG.removesuffix(".wav")
        assert download.value.suggested_filename.split() == f"{name} - {source}.wav".split()
        stem = tmp_path / name / f"{source}.wav"
        assert Path(download.value.path()).read_bytes() == stem.read_bytes()
    checked(watched, address)
    assert set(asked) <= {"127.0.0.1", "::1"}
    page.close()


def test_a_song_goes_on_playing_when_it_is_whole(browser, page_of, monkeypatch):
    address, songs, _ = page_of
    heard, advance = threading.Event(), Job.advance

    def waiting(job, done, total):
        assert job.opening is None or heard.wait(60)
        advance(job, done, total)

    monkeypatch.setattr(Job, "advance", waiting)
    page, watched = opened_page(browser, address, DESKTOP)
    separated(page, songs / SONG)
    player = page.locator(".song.opening [data-track=drums] audio")
    player.wait_for(timeout=60_000)
    page.wait_for_function("x => x.readyState >= 3", arg=player.element_handle())
    assert player.evaluate("x => x.duration") < 0.2
    player.evaluate("async x => { x.muted = true; x.loop = true; await x.play() }")
    heard.set()
    whole = page.locator(".song:not(.opening) [data-track=drums] audio")
    whole.wait_for(timeout=60_000)
    page.wait_for_function(
        """() => {
          const player = document.querySelector(".song:not(.opening) [data-track=drums] audio");
          return player.currentTime > 0 && (player.ended || !player.paused);
        }"""
    )
    assert page.locator(".song.opening").count() == 0
    checked(watched, address)
    page.close()


def test_the_page_says_what_the_command_says(browser, page_of, tiny_models, monkeypatch, capsys):
    address, songs, _ = page_of
    monkeypatch.chdir(songs)
    page, watched = opened_page(browser, address, DESKTOP)
    page.get_by_role("button", name="Separate").click()
    page.get_by_text("There is no song yet").wait_for()
    assert separate.main(["--models", str(tiny_models), "--output", "out", "notes.txt"]) == 1
    separated(page, songs / "notes.txt")
    said = capsys.readouterr().err.strip().removeprefix("error: ")
    page.get_by_text(said, exact=True).wait_for(timeout=30_000)
    page.get_by_label("Clear").or_(page.get_by_label("Remove this file")).first.click()
    page.locator("input[type=file]").set_input_files(songs / "large.wav")
    page.get_by_text("large.wav has 1.2 MB, expected at most 1: ").wait_for()
    separated(page, songs / "long.wav")
    page.get_by_text("long.wav lasts 31.0 s, expected at most 30: cut it").wait_for(timeout=30_000)
    assert page.locator("#too-large").inner_text() == ""
    checked(watched, address)
    page.close()


def test_a_phone_in_the_dark_tries_the_example(browser, page_of):
    address, _, _ = page_of
    page, watched = opened_page(browser, address, PHONE, color_scheme="dark", has_touch=True)
    wide = "() => document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(wide) <= 0
    page.get_by_text("test song").click()
    page.locator(".file-preview").wait_for()
    page.get_by_role("button", name="Separate").click()
    page.locator(".song:not(.opening) audio").nth(2).wait_for(timeout=60_000)
    assert page.evaluate(wide) <= 0
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, dark.removeprefix("rgb(").removesuffix(")").split(","))) < 80
    checked(watched, address)
    page.close()


def test_one_who_stops_or_leaves_stops_the_work(browser, page_of, monkeypatch):
    address, songs, _ = page_of
    advance, cancel, cancelled = Job.advance, Job.cancel, []

    def slowly(job, done, total):
        advance(job, done, total)
        time.sleep(0.05)

    def noted(job):
        cancelled.append(not job.done)
        cancel(job)

    monkeypatch.setattr(Job, "advance", slowly)
    monkeypatch.setattr(Job, "cancel", noted)
    page, watched = opened_page(browser, address, DESKTOP)
    separated(page, songs / SONG)
    page.wait_for_function("() => document.querySelector('progress')?.value > 0")
    assert 0 < page.locator("progress").evaluate("x => x.value") < 1
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    assert any(cancelled)
    cancelled.clear()
    page.get_by_role("button", name="Separate").click()
    page.wait_for_function("() => document.querySelector('progress')?.value > 0")
    checked(watched, address)
    page.close()
    until = time.monotonic() + 10
    while not cancelled and time.monotonic() < until:
        time.sleep(0.05)
    assert cancelled == [True]


def test_nothing_is_left_behind(tiny_models, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = threading.active_count()
    args = app.Args(models=tiny_models, port=free_port(), device="cpu")
    with app.opened(args):
        assert list(tmp_path.glob("separation-*"))
    assert not list(tmp_path.iterdir())
    assert threading.active_count() <= before + 2
