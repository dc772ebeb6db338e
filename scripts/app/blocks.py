"""The gradio widgets around a `JobQueue`, and their server."""

from __future__ import annotations

import asyncio
import os
import socket
import traceback
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import gradio as gr
from starlette.middleware import Middleware

from jukebox_core.checks import one_line
from scripts._methods import MethodName
from scripts._results import NAMES
from scripts.app.gate import Gate, own_names
from scripts.app.jobs import Cancelled, Job, JobQueue
from scripts.app.page import LEAD, STYLE, TITLE, head, listed, progress, refusals, remark, results

EMPTY = '<div class="empty">The stems will appear here.</div>'
_POLL = 0.25  # s between looks at a job
_WAITING = 20  # visitors served at a time
_NO_UPLOAD = "Choose one of the methods and upload a song."


def make_page(
    queue: JobQueue,
    ready: Mapping[MethodName, Sequence[str]],
    missing: Mapping[MethodName, str],
    examples: Sequence[Path] = (),
) -> gr.Blocks:
    """Build the page.

    Args:
        queue: runs the separations.
        ready: {method: sources}; the first method is the default.
        missing: {method: why it is not offered}.
        examples: songs to try.
    """
    sources = listed(next(iter(ready.values())))
    several = len({*map(tuple, ready.values())}) > 1
    methods = [
        (f"{NAMES[method]}: {', '.join(own)}" if several else NAMES[method], method)
        for method, own in ready.items()
    ]
    private: dict[str, Any] = {"api_visibility": "private"}
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(900, 7200)) as page:
        job = gr.State(None)
        gr.HTML(f"<h1>{TITLE}</h1><p>{LEAD.format(sources=sources)}</p>", elem_id="lead")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                song = gr.File(label="A song: WAV, FLAC, MP3, Ogg, ...", height=150)
                _take_uploads_only(song)
                if examples:
                    gr.Examples(
                        [[str(path)] for path in examples],
                        [song],
                        label="Or try",
                        example_labels=[path.stem for path in examples],
                        **private,
                    )
                method = gr.Radio(methods, value=methods[0][1], label="Method")
                if missing:
                    gr.HTML(refusals(missing))
                start = gr.Button("Separate", variant="primary")
                stop = gr.Button("Stop", visible=False)
                gr.HTML('<p id="too-large" role="alert"></p>')
                message = gr.HTML()
            with gr.Column(scale=3, min_width=300):
                stems = gr.HTML(EMPTY)
        start.click(
            _separator(queue, ready, Path(song.GRADIO_CACHE)),
            [song, method],
            [message, stems, start, stop, job],
            show_progress="hidden",
            concurrency_limit=_WAITING,  # the queue makes them wait and shows it
            **private,
        )
        stop.click(lambda job: job and job.cancel(), [job], show_progress="hidden", **private)
    return page


def _take_uploads_only(song: gr.File) -> None:
    """Refuse a URL in place of an upload; gradio would fetch it."""
    move = song.async_move_resource_to_block_cache

    async def checked(url_or_file_path: str | Path | None) -> str | None:
        if "://" in str(url_or_file_path):
            raise gr.Error(_NO_UPLOAD, print_exception=False)
        return await move(url_or_file_path)

    song.async_move_resource_to_block_cache = checked  # type: ignore[method-assign]


def _separator(queue: JobQueue, methods: Collection[str], uploads: Path) -> Any:
    """Return the button's function; it yields (message, stems, start, stop, job) until the end.

    Args:
        queue: runs the separations.
        methods: that are offered.
        uploads: folder of the songs.
    """

    async def separate(song: str | None, method: MethodName) -> AsyncIterator[tuple[Any, ...]]:
        if song is None:
            yield _shown(remark("There is no song yet. Drop one above.", error=True))
            return
        if method not in methods or not Path(song).resolve().is_relative_to(uploads.resolve()):
            yield _shown(remark(_NO_UPLOAD, error=True))  # not from the page
            return
        job, before, opened = queue.submit(Path(song), method), "", False
        try:
            while not job.done:
                shown = progress(job, queue.ahead(job))
                opening = None if opened or job.opening is None else results(job.opening, True)
                if shown != before or opening:  # gradio keeps what no visitor reads
                    yield _shown(shown, opening, job)
                before, opened = shown, opened or opening is not None
                await asyncio.sleep(_POLL)
            yield _ended(job)
        finally:
            job.cancel()  # the visitor may have left

    return separate


def _ended(job: Job) -> tuple[Any, ...]:
    try:
        return _shown("", results(job.result()))
    except Cancelled:
        return _shown(remark("Stopped."))
    except (ValueError, OSError) as error:
        text = one_line(error)
    except Exception as error:  # a bug, or models too large for the device
        traceback.print_exception(error)
        text = f"{type(error).__name__}: {one_line(error)}"
    return _shown(remark(text, error=True))


def _shown(message: str, stems: str | None = None, job: Job | None = None) -> tuple[Any, ...]:
    """Return (message, stems, start, stop, job); without stems, the page keeps the former ones."""
    start, stop = gr.update(visible=job is None), gr.update(visible=job is not None)
    return message, gr.skip() if stems is None else stems, start, stop, job


def _theme() -> gr.themes.Base:
    """Use the system's fonts, so that the page fetches nothing from other hosts."""
    return gr.themes.Base(
        primary_hue="emerald",
        secondary_hue="emerald",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    ).set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")


@contextmanager
def gradio_folder(folder: Path) -> Iterator[None]:
    """Make gradio keep uploads in `folder`, write no history and send no analytics."""
    values = dict.fromkeys(("GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY"), "False")
    folders = dict.fromkeys(("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE"), str(folder))
    with mock.patch.dict(os.environ, values | folders):
        yield


@contextmanager
def serving(
    queue: JobQueue,
    page: gr.Blocks,
    results_folder: Path,
    host: str,
    port: int,
    opened: bool,
    **gate: Any,
) -> Iterator[str]:
    """Serve the page and yield its address.

    Args:
        queue: of the page.
        page: from `make_page`.
        results_folder: its files are served.
        host: to listen at.
        port: to listen at.
        opened: open the page in the browser.
        gate: other arguments of `Gate`.

    Raises:
        OSError: the port cannot be used.
    """
    page.queue(max_size=2 * _WAITING, api_open=False)
    largest = round(queue.limits.megabytes * 1e6)
    names = own_names(host, socket.gethostname())
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=opened,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            allowed_paths=[str(results_folder)],
            max_file_size=largest,
            app_kwargs={"middleware": [Middleware(Gate, names=names, largest=largest, **gate)]},
            theme=_theme(),
            css=STYLE,
            head=head(queue.limits),
        )
    except OSError as error:
        raise OSError(
            f"port {port} of host {host} cannot be used, perhaps because another program uses it: "
            "choose another one with --port"
        ) from error
    try:
        yield address
    finally:
        page.close(verbose=False)
