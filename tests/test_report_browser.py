"""The report in a real browser: what is heard and where, keys, colours, nothing from outside."""

import time

import numpy as np
import pytest
from browsing import DESKTOP, PHONE, Watched
from made_up_runs import write_runs

from scripts import report

RECORD = """
async ([tapped]) => {
  // The given tracks before their gains, and the sum that is heard, in one block of samples each.
  const song = songs[0], context = song.tracks[0].gain.context;
  const count = tapped.length + 1, merger = new ChannelMergerNode(context, {numberOfInputs: count});
  tapped.forEach((i, k) => song.tracks[i].source.connect(merger, 0, k));
  song.tracks.forEach(track => track.gain.connect(merger, 0, count - 1));
  const taker = context.createScriptProcessor(16384, count, 1);
  merger.connect(taker); taker.connect(context.destination);
  let blocks = 0;
  const found = await new Promise(done => { taker.onaudioprocess = event => {
    if (++blocks < 2) return;
    const channels = [];
    for (let c = 0; c < count; c++) channels.push([...event.inputBuffer.getChannelData(c)]);
    done(channels);
  }; });
  taker.onaudioprocess = null; taker.disconnect(); merger.disconnect();
  song.tracks.forEach(track => track.gain.disconnect(merger));
  return found;
}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    runs = write_runs(tmp_path_factory.mktemp("runs ü"), examples=2)
    assert report.main(["--runs", str(runs), "--output", str(runs / "report ü.html")]) == 0
    return runs / "report ü.html"


@pytest.fixture
def opened(browser, path):
    """The page without a network, and what it asked for."""
    context = browser.new_context(viewport=DESKTOP)
    context.set_offline(True)
    watched = Watched(context.new_page())
    watched.page.goto(path.as_uri())
    yield watched
    # RECORD's own.
    assert [c for c in watched.complaints if "ScriptProcessor" not in c] == []
    assert all(url.startswith(("data:", path.as_uri())) for url in watched.requests)
    context.close()


def until(page, condition):
    """Wait for it; the page's own policy forbids Playwright's way to do so."""
    end = time.monotonic() + 10
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def playing(page, song=0):
    until(page, f"songs[{song}].playing && !!songs[{song}].tracks[0].source")


def lag(recorded, whole):
    """Where in a loop of `whole` the recording begins, and how sure that is (1: the same)."""
    spectrum = np.fft.rfft(whole).conj() * np.fft.rfft(recorded, len(whole))
    match = np.fft.irfft(spectrum, len(whole))
    at = int(match.argmax())  # whole[n] heard at recorded[n + at]
    expected = np.roll(whole, at)[: len(recorded)]
    alike = np.dot(recorded, expected) / np.linalg.norm(recorded) / np.linalg.norm(expected)
    return -at % len(whole), alike


def recorded(page, tapped, expected):
    """The tapped tracks and what is heard, which should sound like `expected`.

    A busy processor leaves gaps in a browser's sound: of some records the best one counts.
    """

    def worst(tracks):
        return min(lag(track, whole)[1] for track, whole in zip(tracks, expected, strict=True))

    tries = []
    while len(tries) < 5 and not (tries and worst(tries[-1]) > 0.99):
        tries.append([np.array(track) for track in page.evaluate(RECORD, [tapped])])
    return max(tries, key=worst)


def buffers(page):
    return [
        np.array(x)
        for x in page.evaluate("songs[0].tracks.map(t => [...t.buffer.getChannelData(0)])")
    ]


def test_the_chosen_track_is_heard_and_all_stand_at_the_same_sample(opened):
    page = opened.page
    page.click(".song .track[data-name='Hybrid: drums'] .tile")
    playing(page)
    names = page.evaluate("songs[0].tracks.map(t => t.name)")
    chosen, truth = names.index("Hybrid: drums"), names.index("Truth: bass")
    whole = buffers(page)
    expected = [whole[i] for i in (chosen, truth, chosen)]
    tracks = recorded(page, [chosen, truth], expected)
    first, second, sum_ = (lag(*both) for both in zip(tracks, expected, strict=True))
    assert min(first[1], second[1], sum_[1]) > 0.99
    assert first[0] == second[0] == sum_[0]
    # Another one, without a stop: the sum follows, the place does not jump.
    before = page.evaluate("[songs[0].began, songs[0].position]")
    page.click(".song .track[data-name='Truth: bass'] .tile")
    assert page.evaluate("songs[0].began") == before[0]
    _, heard = recorded(page, [chosen], [whole[chosen], whole[truth]])
    assert lag(heard, whole[truth])[1] > 0.99 and lag(heard, whole[chosen])[1] < 0.2


def test_the_position_moves_with_the_sound_and_loops(opened):
    page = opened.page
    page.click(".play >> nth=0")
    playing(page)
    began = time.monotonic()
    start = page.evaluate("songs[0].tracks[0].source.context.currentTime - songs[0].began")
    page.wait_for_timeout(1300)
    took = time.monotonic() - began
    state = page.evaluate(
        "(song => ({at: song.position, of: song.duration,"
        " now: song.tracks[0].gain.context.currentTime - song.began}))(songs[0])"
    )
    assert state["of"] == pytest.approx(20_000 / 22_050, abs=0.06)
    assert state["now"] - start == pytest.approx(took, abs=0.3)
    assert state["at"] == pytest.approx(state["now"] % state["of"], abs=1e-6)
    shown = page.evaluate(
        "Number(songs[0].article.querySelector('.seek').value) / songs[0].duration"
    )
    line = page.evaluate("Number(songs[0].article.style.getPropertyValue('--at'))")
    assert line == pytest.approx(shown, abs=0.1)


def test_without_the_loop_it_ends_at_the_start(opened):
    page = opened.page
    page.click(".again >> nth=0")
    page.click(".play >> nth=0")
    playing(page)
    until(page, "!songs[0].playing")
    assert page.evaluate("songs[0].position") == 0
    assert page.get_attribute(".play >> nth=0", "aria-label") == "Play"


def test_one_song_at_a_time_and_each_keeps_its_place(opened):
    page = opened.page
    page.click("#song-0 .play")
    playing(page, 0)
    page.wait_for_timeout(200)
    page.click("#song-1 .tile >> nth=3")
    playing(page, 1)
    assert page.evaluate("[songs[0].playing, songs[1].playing]") == [False, True]
    held = page.evaluate("songs[0].position")
    page.wait_for_timeout(200)
    assert page.evaluate("songs[0].position") == held > 0


def test_keys_do_everything(opened):
    page = opened.page
    page.focus("#song-0 .tile >> nth=0")
    page.keyboard.press("Space")
    playing(page)
    where = []
    for key in ("ArrowDown", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
        where.append(
            page.evaluate(
                "[songs[0].tracks[songs[0].current].name,"
                " document.activeElement.getAttribute('aria-pressed')]"
            )
        )
    expected = ["Truth: bass", "Truth: drums", "LQ-VAE: drums", "LQ-VAE: bass", "Truth: bass"]
    assert where == [[name, "true"] for name in expected]
    assert page.evaluate("songs[0].playing")
    assert page.inner_text("#song-0 .now") == "Truth: bass"
    page.keyboard.press("Space")
    held = page.evaluate("[songs[0].playing, songs[0].position]")
    assert not held[0]
    page.keyboard.press("Home")
    assert page.evaluate("songs[0].position") == 0
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate("songs[0].position") == pytest.approx(0.5)
    page.focus("#song-0 .seek")
    page.keyboard.press("Home")
    assert page.evaluate("songs[0].position") == pytest.approx(0.0)
    pressed = page.locator("#song-0 .tile[aria-pressed=true]")
    assert pressed.count() == 1 and page.locator("#song-0 .tile[tabindex='0']").count() == 1


def test_without_web_audio_the_browsers_players_play(browser, path):
    page = browser.new_page()
    page.add_init_script("delete window.AudioContext")
    page.goto(path.as_uri())
    assert page.locator(".transport >> visible=true").count() == 0
    player = page.locator("#song-0 audio").first
    assert player.is_visible()
    state = player.evaluate(
        "async p => { await p.play(); await new Promise(r => setTimeout(r, 400));"
        " return [p.duration, p.currentTime, p.error]; }"
    )
    assert state[0] == pytest.approx(20_000 / 22_050, abs=0.06)
    assert state[1] > 0.1 and state[2] is None
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_every_scheme(browser, path, scheme):
    context = browser.new_context(viewport=PHONE, color_scheme=scheme, has_touch=True)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    tile = page.locator("#song-0 .tile").nth(4)
    tile.tap()
    playing(page)
    box = tile.bounding_box()
    assert box["width"] > 100 and box["height"] > 40
    # WCAG AA: 4.5 to 1 for text on the page and on panels.
    contrasts = page.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement);
          const light = name => {
            const hex = style.getPropertyValue(name).trim().slice(1);
            const [r, g, b] = [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
              .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const out = {};
          for (const text of ["--ink", "--soft", "--lqvae", "--lass", "--hybrid", "--warn"])
            for (const ground of ["--page", "--panel"]) {
              const [a, b] = [light(text), light(ground)].sort((x, y) => y - x);
              out[text + " on " + ground] = (a + 0.05) / (b + 0.05);
            }
          return out;
        }"""
    )
    assert len(contrasts) == 12
    assert {k: v for k, v in contrasts.items() if v < 4.5} == {}
    context.close()
