"""The gradio widgets around a `JobQueue`, and their server."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import gradio as gr

from jukebox_core.checks import one_line
from scripts._methods import MethodName
from scripts._results import NAMES
from scripts.app.jobs import Cancelled, Job, JobQueue
from scripts.app.page import LEAD, STYLE, TITLE, head, progress, refusals, remark, results

EMPTY = '<div class="empty">The stems will appear here.</div>'
_POLL = 0.25  # s between looks at a job
_WAITING = 20  # visitors served at a time


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
    sources = " and ".join(next(iter(ready.values())))
    methods = [(NAMES[method], method) for method in ready]
    private: dict[str, Any] = {"api_visibility": "private"}
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(900, 7200)) as page:
        job = gr.State(None)
        gr.HTML(f"<h1>{TITLE}</h1><p>{LEAD.format(sources=sources)}</p>", elem_id="lead")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                song = gr.File(label="A song: WAV, FLAC, MP3, Ogg, ...", height=150)
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
            _separator(queue),
            [song, method],
            [message, stems, start, stop, job],
            show_progress="hidden",
            concurrency_limit=_WAITING,  # the queue makes them wait and shows it
            **private,
        )
        stop.click(lambda job: job and job.cancel(), [job], show_progress="hidden", **private)
    return page


def _separator(queue: JobQueue) -> Any:
    """Return the button's function; it yields (message, stems, start, stop, job) until the end."""

    async def separate(song: str | None, method: MethodName) -> AsyncIterator[tuple[Any, ...]]:
        if song is None:
            yield _shown(remark("There is no song yet. Drop one above.", error=True))
            return
        job = queue.submit(Path(song), method)
        try:
            while not job.done:
                yield _shown(progress(job, queue.ahead(job)), job=job)
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
    with mock.patch.dict(os.environ, values, GRADIO_TEMP_DIR=str(folder)):
        yield


@contextmanager
def serving(
    queue: JobQueue, page: gr.Blocks, results_folder: Path, host: str, port: int, opened: bool
) -> Iterator[str]:
    """Serve the page and yield its address.

    Raises:
        OSError: the port cannot be used.
    """
    page.queue(max_size=2 * _WAITING)
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
            max_file_size=round(queue.limits.megabytes * 1e6),
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
