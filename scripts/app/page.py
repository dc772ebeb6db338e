"""HTML of the app besides its widgets: results, messages, style, script."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from jukebox_core.audio.pictures import LOWEST
from scripts._methods import MethodName
from scripts._results import NAMES
from scripts.app.jobs import MIXTURE, SEPARATING, UNCERTAINTY, Job, Limits, Result

TITLE = "Latent source separation"
LEAD = (
    "This page separates a song into {sources}: trained models of the sources search for the stems "
    "that together explain the song. The song stays on the computer that runs this page."
)


def progress(job: Job, ahead: int) -> str:
    """Return a job's stage, progress and remaining time."""
    if ahead:
        text = f"waiting for {ahead} other {'song' if ahead == 1 else 'songs'}"
    elif job.stage == SEPARATING:
        left = "" if job.left is None else f", about {_duration(job.left)} left"
        text = f"{job.fraction:.0%} separated{left}"
    else:
        text = job.stage
    return (
        f'<div class="progress" role="status"><progress max="1" value="{job.fraction:.4f}">'
        f"</progress><span>{text}</span></div>"
    )


def remark(text: str, error: bool = False) -> str:
    """Return a message for the line below the button."""
    kind = 'class="remark error" role="alert"' if error else 'class="remark" role="status"'
    return f"<p {kind}>{html.escape(text)}</p>"


def refusals(missing: Mapping[MethodName, str]) -> str:
    """Return the reasons why methods are not offered."""
    return "".join(
        f'<p class="missing">{NAMES[method]} is not offered: {html.escape(why)}</p>'
        for method, why in missing.items()
    )


def results(result: Result, opening: bool = False) -> str:
    """Return players with spectrograms of mixture and stems, and the map of uncertainty.

    opening: it is that of the song's first seconds only.
    """
    channels = {1: "mono", 2: "stereo"}.get(result.channels, f"{result.channels} channels")
    length = f"{_duration(result.seconds)} ({result.rate:,} Hz, {channels})"
    summary = f"{NAMES[result.method]}: {length} separated in {_duration(result.took)}"
    if opening:
        summary = f"The first {_duration(result.seconds)} of the song"
    tracks = "".join(_track(result, name) for name in (MIXTURE, *result.sources))
    owners = listed([f"the {html.escape(source)}" for source in result.sources])
    uncertainty = (
        '<section class="track"><header><b>uncertainty</b></header>'
        f"{_picture(result, UNCERTAINTY, 'uncertainty')}"
        f"<p>Yellow: {owners if len(result.sources) == 2 else f'two of {owners}'} are equally "
        "likely to own a sound. Black: the models are sure, which does not make them right, or the "
        "sound is quiet.</p></section>"
    )
    return (
        f'<article class="song{" opening" * opening}" data-job="{result.job}">'
        f"<h2>{html.escape(result.name)}</h2>"
        f"<p>{summary}</p>{tracks}{uncertainty}<p>Left to right: "
        f"{'these seconds' if opening else 'the whole song'}. Bottom to top: {LOWEST:.0f} Hz to "
        f"{result.highest / 1000:.3g} kHz, logarithmic. Click a picture to move there; a track "
        "starts at the position of the track that played before.</p></article>"
    )


def listed(words: Sequence[str]) -> str:
    """Return `bass, drums and other`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _track(result: Result, name: str) -> str:
    label, url = html.escape(name), _url(result.file(name))
    link = "" if name == MIXTURE else f'<a href="{url}" download>download wav</a>'
    return (
        f'<section class="track" data-track="{label}"><header><b>{label}</b>{link}</header>'
        f"{_picture(result, name, 'spectrogram of ' + name)}"
        f'<audio controls preload="metadata" aria-label="{label}" src="{url}"></audio></section>'
    )


def _picture(result: Result, track: str, title: str) -> str:
    return (
        f'<div class="picture"><img alt="{html.escape(title, quote=True)}" '
        f'src="{_url(result.file(track, ".png"))}"><i></i></div>'
    )


def _url(path: Path) -> str:
    """Return a relative URL: the page may have any address."""
    return html.escape("gradio_api/file=" + quote(path.as_posix(), safe="/:"), quote=True)


def _duration(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def head(limits: Limits) -> str:
    """Return the script of the page."""
    name, size = "\N{FULLWIDTH LESS-THAN SIGN}", "\N{FULLWIDTH GREATER-THAN SIGN}"
    message = json.dumps(limits.too_large(name, size))
    values = f"const LIMIT = {limits.megabytes * 1e6:.0f}, NAME = '{name}', SIZE = '{size}';"
    return f"<script>(() => {{ {values} const MESSAGE = {message};{_SCRIPT}}})();</script>"


# One player plays at a time and starts at the position of the former one; a line on all pictures
# shows the position. When the whole song takes the place of its first seconds, gradio gives the
# same player another source: it goes on where it was. Files that are too large are refused before
# the upload.
_SCRIPT = """
let last = null, playing = false, reached = 0, playedTrack = "";
const songOf = element => element.closest && element.closest(".song");
const trackOf = player => songOf(player).dataset.job + player.closest(".track").dataset.track;
document.addEventListener("pause", event => {
  if (event.target === last) playing = false;
}, true);
document.addEventListener("emptied", event => {
  const player = event.target;
  if (player !== last) return;
  const same = trackOf(player) === playedTrack;
  if (same) player.currentTime = reached;
  if (same && playing) player.play(); else playing = false;
}, true);
document.addEventListener("play", event => {
  const player = event.target;
  if (!songOf(player)) return;
  playing = true;
  playedTrack = trackOf(player);
  if (last && last !== player) {
    if (songOf(last) === songOf(player) && !last.ended) player.currentTime = last.currentTime;
    last.pause();
  }
  last = player;
}, true);
document.addEventListener("timeupdate", event => {
  const player = event.target, song = songOf(player);
  if (player === last) reached = player.currentTime;
  if (song && player === last && player.duration)
    song.style.setProperty("--at", player.currentTime / player.duration);
}, true);
document.addEventListener("click", event => {
  const picture = event.target.closest && event.target.closest(".song .picture");
  if (!picture) return;
  const song = songOf(picture), box = picture.getBoundingClientRect();
  const own = picture.parentElement.querySelector("audio");
  const player = own || (last && songOf(last) === song ? last : song.querySelector("audio"));
  const at = (event.clientX - box.left) / box.width;
  if (player.duration) player.currentTime = at * player.duration;
  if (last && last !== player && songOf(last) === song && player.duration)
    last.currentTime = player.currentTime;
  song.style.setProperty("--at", at);
  last = last && songOf(last) === song && !last.paused ? last : player;
  playedTrack = trackOf(last);
  reached = last.currentTime;
});
const refuse = (event, files) => {
  const area = document.getElementById("too-large");
  const large = [...(files || [])].find(file => file.size > LIMIT);
  if (area) area.textContent = "";
  if (!large) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  if (event.type === "change") event.target.value = "";
  area.textContent = MESSAGE.replace(NAME, () => large.name)
    .replace(SIZE, (large.size / 1e6).toFixed(1));
};
addEventListener("change", event => {
  if (event.target.type === "file") refuse(event, event.target.files);
}, true);
addEventListener("drop", event => refuse(event, event.dataTransfer && event.dataTransfer.files),
  true);
"""

STYLE = """
.gradio-container { max-width: 76rem !important; margin: 0 auto !important; }
.gradio-container .html-container { padding: 0 !important; }
#lead h1 { font-size: clamp(1.5rem, 4.5vw, 2.1rem); line-height: 1.2; margin: .4rem 0 .5rem; }
#lead p { color: var(--body-text-color-subdued); max-width: 44rem; margin: 0; font-size: 1.05rem; }
.remark { margin: 0; overflow-wrap: anywhere; }
.remark.error, #too-large { color: var(--error-text-color); margin: 0; overflow-wrap: anywhere; }
.missing { color: var(--body-text-color-subdued); font-size: .85rem; margin: 0;
  overflow-wrap: anywhere; }
.progress { display: grid; gap: .3rem; font-variant-numeric: tabular-nums; }
.progress progress { appearance: none; width: 100%; height: .6rem; border: 0; overflow: hidden;
  border-radius: .3rem; background: var(--border-color-primary); }
.progress progress::-webkit-progress-bar { background: var(--border-color-primary); }
.progress progress::-webkit-progress-value { background: var(--color-accent); }
.progress progress::-moz-progress-bar { background: var(--color-accent); }
.empty { color: var(--body-text-color-subdued); border: 1px dashed var(--border-color-primary);
  border-radius: .6rem; padding: 3rem 1rem; text-align: center; }
.song { background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
  border-radius: .6rem; padding: .9rem 1rem 1rem; --at: -1; }
.song h2 { margin: 0; font-size: 1.15rem; overflow-wrap: anywhere; }
.song p { color: var(--body-text-color-subdued); font-size: .85rem; margin: .2rem 0 0; }
.track { padding: .7rem 0 .2rem; }
.track header { display: flex; justify-content: space-between; align-items: baseline; gap: 1rem; }
.track header b::first-letter { text-transform: uppercase; }
.track a { margin: 0; padding: 0; font-size: .85rem; text-decoration: underline;
  color: var(--link-text-color); }
.picture { position: relative; cursor: pointer; margin: .3rem 0; overflow: hidden; }
.picture img { width: 100%; height: 84px; display: block; border-radius: .3rem; object-fit: fill; }
.picture i { position: absolute; top: 0; bottom: 0; left: calc(100% * var(--at)); width: 2px;
  margin-left: -1px; background: #fff; opacity: .85; pointer-events: none; }
.track audio { width: 100%; height: 38px; display: block; }
.dark .track audio { color-scheme: dark; }
"""
