"""scripts.app: what visitors send besides what the page sends, and what other sites send."""

import asyncio
import html
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
import soundfile
from browsing import free_port
from test_separate_script import music

from jukebox_core import audio
from jukebox_core.audio.decoding import AudioReader, UnknownFormat, ffmpeg_to_wav
from scripts import app
from scripts._methods import METHODS
from scripts.app import page, program
from scripts.app.jobs import Job, JobQueue, Limits, Refused, Result
from scripts.app.uploads import Uploads

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")

UPLOAD, JOIN, DATA = (f"/gradio_api/{name}" for name in ("upload", "queue/join", "queue/data"))
PATIENCE = 5.0  # s; longer than the pauses of a busy machine
MARKUP = "<script>alert(1)</script> \" onload='x' {{7*7}} ${7*7} &amp;"


class Visitor:
    """Uses the server without the page."""

    def __init__(self, address, folder):
        self.address, self.folder = address, folder
        self.http = httpx.Client(base_url=address, timeout=120)
        functions = self.http.get("/config").json()["dependencies"]
        self.separate = next(f["id"] for f in functions if len(f["inputs"]) == 2)
        self.sessions = 0

    def upload(self, name="a.wav", content=b"RIFF", **headers):
        return self.http.post(UPLOAD, files=[("files", (name, content))], headers=headers)

    def status(self, route, content, headers):
        try:
            url = self.address.rstrip("/") + route
            return httpx.post(url, content=content, headers=headers, timeout=120).status_code
        except httpx.TransportError:  # closed before all was sent or read
            return 400

    def join(self, *data, **other):
        self.sessions += 1
        session = f"session-{time.monotonic_ns()}-{self.sessions}"
        body = {"data": data, "fn_index": self.separate, "session_hash": session} | other
        return session, self.http.post(JOIN, json=body)

    def heard(self, session):
        """The last message of the session's stream but its end."""
        lines = []
        with self.http.stream("GET", DATA, params={"session_hash": session}) as stream:
            lines += [line for line in stream.iter_lines() if line]
        return json.loads(lines[-2].removeprefix("data: "))

    def separated(self, path):
        session, answer = self.join(of(path), "hybrid")
        assert answer.status_code == 200
        return self.heard(session)

    def alive(self):
        assert httpx.get(self.address, timeout=120).status_code == 200

    def files(self, place="uploads"):
        return [path for path in (self.folder / place).rglob("*") if path.is_file()]

    def since(self, before):
        """The uploads that were not there before; old parts of songs may be removed meanwhile."""
        return set(self.files()) - set(before)


def refused(message):
    """Whether a job ended without a result."""
    assert message["msg"] == "process_completed"
    return not message["success"] or 'class="remark error"' in message["output"]["data"][0]


def of(path, **other):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}, **other}


@pytest.fixture(scope="module")
def visitor(tiny_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    args = app.Args(
        models=tiny_models,
        names=("music.example",),
        port=free_port(),
        device="cpu",
        candidates=1,
        max_seconds=10,
        max_megabytes=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setattr(program, "_PATIENCE", PATIENCE)
        with app.opened(args) as address:
            (temporary,) = folder.glob("separation-*")
            yield Visitor(address.replace("localhost", "127.0.0.1"), temporary)


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("songs") / "song.flac"
    audio.save(path, music(0.5, 22_050, 1), 22_050)
    return path.read_bytes()


@pytest.fixture
def fetched(monkeypatch):
    """What the server would fetch."""
    from gradio import processing_utils, routes

    asked = []

    async def noted(url, *others, **options):
        asked.append(url)
        raise ValueError

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", noted)
    monkeypatch.setattr(routes, "secure_url_stream_response", noted)
    return asked


# Files and addresses.

OUTSIDE = [
    "/etc/passwd",
    "pyproject.toml",
    "FOLDER/../secret.txt",
    "FOLDER/uploads/../../secret.txt",
]
OUTSIDE += ["FOLDER/results", "FOLDER/uploads", "FOLDER/uploads/link", "file:///etc/passwd"]
URLS = ["http://127.0.0.1:PORT/config", "http://192.0.2.1/a.wav", "https://example.com/a.wav"]


def real(path, visitor):
    port = urlsplit(visitor.address).port
    return path.replace("FOLDER", str(visitor.folder)).replace("PORT", str(port))


@pytest.fixture(scope="module")
def secret(visitor):
    path = visitor.folder.parent / "secret.txt"
    path.write_text("secret", encoding="utf-8")
    (visitor.folder / "uploads").mkdir(exist_ok=True)
    (visitor.folder / "uploads" / "link").symlink_to(path)
    yield path
    (visitor.folder / "uploads" / "link").unlink(missing_ok=True)


@pytest.mark.parametrize("path", OUTSIDE + URLS)
def test_nothing_else_is_served(visitor, secret, fetched, path):
    target = real(path, visitor)
    for route in ("file=", "file/", "proxy=", "file=//", "file=/"):
        for written in (target, quote(target, safe=""), quote(target.replace("/", "\\"))):
            answer = visitor.http.get(f"/gradio_api/{route}{written}")
            assert answer.status_code in (400, 403, 404)
            assert "secret" not in answer.text.replace("secret.txt", "")
    assert not fetched


@pytest.mark.parametrize("path", OUTSIDE + URLS)
@pytest.mark.parametrize("other", [{}, {"is_stream": True}, {"url": URLS[0]}])
def test_only_uploads_are_songs(visitor, secret, fetched, path, other):
    session, answer = visitor.join(of(real(path, visitor), **other), "hybrid")
    assert answer.status_code == 200
    message = visitor.heard(session)
    assert refused(message) and not fetched and not visitor.files("results")


@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("GET", "info"),
        ("GET", "vibe-code"),
        ("GET", "token"),
        ("GET", "runs"),
        ("GET", "call/separate/1"),
        ("POST", "vibe-code"),
        ("POST", "process_recording"),
        ("POST", "component_server"),
        ("POST", "call/separate"),
        ("POST", "run/separate"),
        ("POST", "stream/1"),
        ("PUT", "upload"),
    ],
)
def test_other_routes_are_closed(visitor, method, route):
    answer = visitor.http.request(method, f"/gradio_api/{route}", json={"code": "1", "data": []})
    assert answer.status_code in (404, 405)


def test_the_queue_is_not_avoided(visitor):
    body = {"data": [None, "hybrid"], "fn_index": visitor.separate, "session_hash": "a"}
    answer = visitor.http.post("/gradio_api/run/predict", json=body)
    assert answer.status_code == 404 and "queue" in answer.text


# Names.

NAMES = ["../../a.wav", "/etc/a.wav", "..\\..\\a.wav", "C:\\a.wav", "a\nb\r\n.wav", "a\0.wav"]
NAMES += ["%2e%2e%2fa.wav", "-rf.wav", "CON.wav", f"{MARKUP}.wav", "\u202egnp.wav", "a" * 250]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_uploads_stay_names(visitor, name):
    answer = visitor.upload(name)
    assert answer.status_code == 200
    (path,) = map(Path, answer.json())
    assert path.resolve() == path and path.is_file() and "\n" not in path.name
    assert path.is_relative_to(visitor.folder / "uploads") and not set(path.name) & set('<>"/\\')


@pytest.mark.parametrize("name", ["..", "a" * 5000])
def test_impossible_names_are_refused(visitor, name):
    assert visitor.upload(name).status_code >= 400
    visitor.alive()


class Tags(HTMLParser):
    """Tags, and the text of attributes and elements."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


def result(name, sources=("bass", "drums")):
    return Result("1f", name, "hybrid", Path("/a b"), sources, 22_050, 1, 1.0, 1.0, 11_025.0)


def test_markup_in_names_is_text():
    plain, marked = (Tags(page.results(result(name))) for name in ("a", MARKUP))
    assert marked.tags == plain.tags and marked.attributes == plain.attributes
    assert MARKUP in marked.text
    marked = Tags(page.results(result("a", (MARKUP, "drums"))))
    assert marked.tags == plain.tags and marked.attributes == plain.attributes
    for text in (page.remark(MARKUP), page.refusals({"hybrid": MARKUP})):
        assert Tags(text).tags == {"p"} and MARKUP in Tags(text).text


def test_markup_in_tags_and_errors_of_songs_is_text(visitor, tmp_path):
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 22_050, 1) as file:
        file.title = file.artist = file.comment = MARKUP
        file.write(music(0.5, 22_050, 1)[0].numpy())
    name = "'& onload=x ${7*7}.wav"
    for content in ((tmp_path / "a.flac").read_bytes(), b"<script>alert(1)</script>"):
        (path,) = visitor.upload(name, content).json()
        shown = "".join(map(str, visitor.separated(path)["output"]["data"][:2]))
        assert "script" not in Tags(shown).tags and "onload" not in Tags(shown).attributes
        assert "alert(1)" not in html.unescape(shown)


# Songs that are larger than they look.


@pytest.fixture
def refusal(tiny_models, tmp_path):
    """Submit a song; return the refusal."""
    queues = []

    def build(method):
        return METHODS[method].load_separator(tiny_models, candidates=1)

    def submit(path):
        queues.append(JobQueue(tmp_path / "results", build, Limits(seconds=10)))
        with pytest.raises(Refused) as caught:
            queues[-1].submit(path, "hybrid").result(timeout=60)
        assert not list((tmp_path / "results").glob("*"))
        return str(caught.value)

    yield submit
    for queue in queues:
        queue.close()


@pytest.fixture
def decoded(monkeypatch):
    """Frames of each decoded block."""
    frames, blocks = [], AudioReader._blocks

    def counted(self, size):
        for block in blocks(self, size):
            frames.append(len(block))
            yield block

    monkeypatch.setattr(AudioReader, "_blocks", counted)
    return frames


def silence(path, seconds, rate=8_000, channels=1):
    soundfile.write(path, np.zeros((int(seconds * rate), channels), np.int16), rate)
    return path


def test_hours_of_silence_are_refused_before_they_are_decoded(tmp_path, refusal, decoded):
    bomb = silence(tmp_path / "bomb.flac", 7200, rate=1000)
    assert bomb.stat().st_size < 100_000
    assert "lasts 7200.0 s, expected at most 10" in refusal(bomb)
    assert not decoded


def test_a_header_without_a_length_does_not_help(tmp_path, refusal, decoded):
    content = bytearray(silence(tmp_path / "bomb.flac", 7200, rate=1000).read_bytes())
    content[21] &= 0xF0  # the number of samples has 36 bits
    content[22:26] = bytes(4)
    (tmp_path / "bomb.flac").write_bytes(content)
    assert "expected at most 10" in refusal(tmp_path / "bomb.flac")
    assert sum(decoded) < 200_000


@pytest.mark.parametrize(("rate", "channels"), [(655_350, 8), (192_000, 4)])
def test_any_number_of_samples_per_second_does_not_help(tmp_path, refusal, decoded, rate, channels):
    bomb = silence(tmp_path / "bomb.flac", 5.1, rate, channels)
    assert "too much to decode" in refusal(bomb)
    assert not decoded


def test_many_channels_are_refused(tmp_path, refusal):
    assert "too much to decode" in refusal(silence(tmp_path / "a.wav", 1, channels=64))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_ffmpeg_stops_at_the_limit(tmp_path, refusal):
    command = "ffmpeg -v error -f lavfi -i anullsrc=r=8000:cl=mono -t 1800 -c:a aac -b:a 8k".split()
    subprocess.run([*command, tmp_path / "bomb.m4a"], check=True)
    assert "expected at most 10" in refusal(tmp_path / "bomb.m4a")
    wav, _ = ffmpeg_to_wav(tmp_path / "bomb.m4a", tmp_path, UnknownFormat("m4a"), longest=10)
    assert wav.stat().st_size < 12 * 8_000 * 4


# Requests.

JSON = {"Content-Type": "application/json"}
DEEP = "[" * 40_000 + "]" * 40_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        DEEP.encode(),
        b'{"data":' + DEEP.encode() + b',"fn_index":0,"session_hash":"deep"}',
        b'{"data":[null,"hybrid"],"fn_index":0}',
        b'{"data":{},"fn_index":0,"session_hash":5}',
        b'{"data":[null,"hybrid"],"fn_index":"a","session_hash":"a"}',
        b'{"data":[null,"hybrid"],"fn_index":10000000000000000000000,"session_hash":"a"}',
        b'{"data":[null,"hybrid"],"fn_index":-1,"session_hash":"a"}',
    ],
)
def test_bodies_that_say_nothing_are_refused(visitor, body):
    for route in (JOIN, "/gradio_api/run/predict", "/gradio_api/cancel", UPLOAD):
        assert visitor.status(route, body, JSON) >= 400
    visitor.alive()


@pytest.mark.parametrize(
    "data",
    [
        [],
        [None],
        [5, "hybrid"],
        ["/etc/passwd", "hybrid"],
        [{"path": "/etc/passwd"}, "hybrid"],
        [[of("/etc/passwd")], "hybrid"],
        [of(""), "hybrid"],
        [of("a\0b"), "hybrid"],
        [of("SONG"), "no such method"],
        [of("SONG"), ["hybrid"]],
        [of("SONG"), None],
        [of("SONG"), "../hybrid"],
    ],
)
def test_values_of_another_kind_start_nothing(visitor, song, monkeypatch, data):
    (path,) = visitor.upload("song.flac", song).json()
    data = json.loads(json.dumps(data).replace("SONG", path))
    started = []
    monkeypatch.setattr(JobQueue, "_attempt", lambda *given: started.append(given))
    session, answer = visitor.join(*data)
    assert answer.status_code >= 400 or refused(visitor.heard(session))
    assert not started


def test_an_unknown_session_hears_nothing(visitor):
    text = ""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        visitor.http.stream("GET", DATA, params={"session_hash": "of someone else"}) as stream,
    ):
        for piece in stream.iter_text():
            text += piece
    assert "session_not_found" in text and "process" not in text
    assert visitor.http.get(DATA).status_code == 422


# Other sites.

HERE = "127.0.0.1:PORT"
CROSS = [
    (421, {"Host": "evil.example"}),
    (421, {"Host": "evil.example:PORT"}),
    (421, {"Host": "127.0.0.1.evil.example:PORT", "Origin": "http://127.0.0.1.evil.example:PORT"}),
    (421, {"Host": "[evil"}),
    (403, {"Origin": "http://evil.example"}),
    (403, {"Origin": "null"}),
    (403, {"Origin": "http://localhost:1"}),
    (403, {"Origin": "http://[evil"}),
    (403, {"Origin": "https://evil.example", "Host": "192.0.2.1:PORT"}),
    (403, {"Origin": "https://evil.example", "Host": "music.example"}),
    (403, {"Sec-Fetch-Site": "cross-site"}),
    (403, {"Sec-Fetch-Site": "same-site"}),
]
OWN = [
    {"Origin": "http://127.0.0.1:PORT", "Sec-Fetch-Site": "same-origin"},
    {"Origin": "http://localhost:PORT", "Host": "localhost:PORT"},
    {"Origin": "http://[::1]:PORT", "Host": "[::1]:PORT"},
    {"Origin": "http://192.0.2.1:PORT", "Host": "192.0.2.1:PORT"},
    {"Origin": "https://music.example", "Host": "music.example"},
    {"Origin": "https://music.example", "Host": HERE},
]


def sent(headers, visitor):
    return {name: real(value, visitor) for name, value in headers.items()}


@pytest.mark.parametrize(("status", "headers"), CROSS)
def test_other_sites_neither_start_nor_read(visitor, song, monkeypatch, status, headers):
    (path,) = visitor.upload("song.flac", song).json()
    before, started = visitor.files(), []
    monkeypatch.setattr(JobQueue, "_attempt", lambda *given: started.append(given))
    headers = sent(headers, visitor)
    assert visitor.upload("evil.wav", b"evil", **headers).status_code == status
    body = {"data": [of(path), "hybrid"], "fn_index": visitor.separate, "session_hash": "x"}
    for kind in ("application/json", "text/plain"):
        answer = visitor.http.post(
            JOIN, content=json.dumps(body), headers={**headers, "Content-Type": kind}
        )
        assert answer.status_code == status
    answer = visitor.http.get(f"/gradio_api/file={path}", headers=headers)
    assert answer.status_code == status and song not in answer.content
    assert not visitor.since(before) and not started


@pytest.mark.parametrize("headers", OWN)
def test_the_page_has_any_of_its_own_addresses(visitor, headers):
    assert visitor.upload(**sent(headers, visitor)).status_code == 200


# Large, slow, many.


def test_large_requests_are_refused(visitor):
    def pieces(number):
        for _ in range(number):
            yield b"a" * 100_000

    before = visitor.files()
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    assert visitor.upload(content=b"a" * 1_100_000).status_code == 413
    assert visitor.http.post(JOIN, content=b"a" * 200_000, headers=JSON).status_code == 413
    for route, headers in ((JOIN, JSON), (UPLOAD, form)):
        assert visitor.status(route, pieces(20), headers) in (400, 413)
    files = [("files", (f"{i}.wav", b"a" * 60_000)) for i in range(20)]  # each is small
    assert visitor.http.post(UPLOAD, files=files).status_code == 413
    assert not visitor.since(before)
    visitor.alive()


def half(visitor):
    """A connection with the beginning of an upload."""
    port = urlsplit(visitor.address).port
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(
        f"POST {UPLOAD} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 90000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        'Content-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'.encode()
        + b"a" * 20_000
    )
    return connection


def parts(visitor):
    """Songs not yet complete; not the link of other tests, which may still be there."""
    files = [path for path in (visitor.folder / "uploads").glob("*") if path.is_file()]
    return [path for path in files if not path.is_symlink()]


def test_uploads_that_stop_are_dropped_and_removed(visitor):
    vanished, slow = half(visitor), half(visitor)
    vanished.close()
    begun = time.monotonic()
    assert b" 408 " in slow.recv(1000)
    assert time.monotonic() - begun > PATIENCE / 2
    slow.close()
    assert parts(visitor)
    for path in parts(visitor):
        os.utime(path, (time.time() - 3 * PATIENCE,) * 2)
    assert visitor.upload().status_code == 200
    assert not parts(visitor)


def test_more_uploads_at_a_time_are_refused(visitor):
    until = time.monotonic() + 20
    status = 200
    while status == 200 and time.monotonic() < until:  # a busy machine may drop them meanwhile
        held = [half(visitor) for _ in range(20)]
        status = visitor.upload().status_code
        for connection in held:
            connection.close()
    assert status == 503
    while (status := visitor.upload().status_code) != 200 and time.monotonic() < until:
        time.sleep(0.05)
    assert status == 200


def test_twenty_visitors_at_once(visitor, song, monkeypatch):
    running, most = [], []
    attempt = JobQueue._attempt

    def noted(*given):
        running.append(given)
        most.append(len(running))
        try:
            return attempt(*given)
        finally:
            running.pop()

    monkeypatch.setattr(JobQueue, "_attempt", noted)

    def visit(number):
        content = b"not audio" if number % 3 else song
        (path,) = visitor.upload(f"song {number}.flac", content).json()
        return visitor.separated(path)

    with ThreadPoolExecutor(20) as pool:
        visits = [pool.submit(visit, number) for number in range(20)]
        visitor.alive()
        shown = [visit.result()["output"]["data"] for visit in visits]
    for number, (message, stems, *_) in enumerate(shown):
        if number % 3:
            assert f"song {number}.flac cannot be read as audio" in message
        else:
            assert message == "" and f"<h2>song {number}</h2>" in stems
    assert len(shown) == 20 and set(most) == {1}
    # Of the last four songs: the first seconds, and the whole.
    assert len(list((visitor.folder / "results").iterdir())) == 2 * 4


def test_who_leaves_the_stream_leaves_the_queue(visitor, song, monkeypatch):
    ended, advance, attempt = threading.Event(), Job.advance, JobQueue._attempt

    def slowly(job, done, total):
        time.sleep(0.2)
        advance(job, 0, total)  # never ends by itself
        slowly(job, done, total) if not ended.is_set() else None

    def noted(*given):
        try:
            return attempt(*given)
        finally:
            ended.set()

    monkeypatch.setattr(Job, "advance", slowly)
    monkeypatch.setattr(JobQueue, "_attempt", noted)
    (path,) = visitor.upload("song.flac", song).json()
    session, _ = visitor.join(of(path), "hybrid")
    with visitor.http.stream("GET", DATA, params={"session_hash": session}) as stream:
        next(line for line in stream.iter_lines() if "process_generating" in line)
        assert not ended.is_set()
    assert ended.wait(20)


def test_a_stream_that_nobody_reads_stays_small(monkeypatch, tmp_path):
    from scripts.app import blocks

    monkeypatch.setattr(blocks, "_POLL", 0.001)
    job = SimpleNamespace(
        done=False, stage="waiting", fraction=0.0, opening=None, cancel=lambda: None
    )
    queue = SimpleNamespace(submit=lambda *_: job, ahead=lambda _: 3)

    async def messages():
        separate, number = blocks._separator(queue, ["hybrid"], tmp_path), 0
        stream = separate(str(tmp_path / "a.wav"), "hybrid")
        with pytest.raises(asyncio.TimeoutError):
            while True:
                await asyncio.wait_for(anext(stream), 0.1)
                number += 1
        return number

    assert asyncio.run(messages()) == 1


def test_the_oldest_uploads_go(tmp_path):
    def put(name, age, size=10):
        path = tmp_path / "uploads" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        os.utime(path, (time.time() - age,) * 2)
        return path

    example = put("example/e.wav", 900)
    uploads = Uploads(tmp_path / "uploads", lambda: {queued}, songs=3, bytes_=100, stale=60)
    queued = put("queued/q.wav", 800)
    songs = [put(f"{number}/s.wav", number, 30) for number in range(1, 7)]
    fresh, stale = put("part", 0), put("stale part", 100)
    uploads.make_room()
    assert all(path.exists() for path in (example, queued, fresh, *songs[:3]))
    assert not any(path.exists() for path in (stale, *songs[3:]))
    songs[0].write_bytes(bytes(95))
    uploads.make_room()
    assert [path.exists() for path in songs[:3]] == [True, False, False] and queued.exists()
