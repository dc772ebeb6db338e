"""The page of scripts.app: gradio's widgets around a `Studio`, and the server that shows it."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from jukebox_core.checks import one_line
from scripts._methods import MethodName
from scripts._results import NAMES
from scripts.app.jobs import Cancelled, Job, Studio
from scripts.app.page import LEAD, STYLE, TITLE, head, progress, refusals, remark, results

__all__ = ["make_page", "serving"]

EMPTY = '<div class="empty">The stems will be here.</div>'
_POLL = 0.25  # s between looks at a job
_WAITING = 20  # visitors served at a time


def make_page(
    studio: Studio,
    ready: Mapping[MethodName, Sequence[str]],
    missing: Mapping[MethodName, str],
    examples: Sequence[Path] = (),
) -> gr.Blocks:
    """The widgets and what they do.

    Args:
        studio: separates.
        ready: {method: sources}, the first one chosen at the start.
        missing: {method: why it is not offered}.
        examples: songs to try.
    """
    sources = " and ".join(next(iter(ready.values())))
    methods = [(NAMES[method], method) for method in ready]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(900, 7200)) as page:
        job = gr.State(None)
        gr.HTML(f"<h1>{TITLE}</h1><p>{LEAD.format(sources=sources)}</p>", elem_id="lead")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                song = gr.File(label="A song: wav, flac, mp3, ogg, ...", height=150)
                if examples:
                    gr.Examples(
                        [[str(path)] for path in examples],
                        [song],
                        label="Or try",
                        example_labels=[path.stem for path in examples],
                        api_visibility="private",
                    )
                method = gr.Radio(methods, value=methods[0][1], label="MethodName")
                if missing:
                    gr.HTML(refusals(missing))
                start = gr.Button("Separate", variant="primary")
                stop = gr.Button("Stop", visible=False)
                gr.HTML('<p id="too-large" role="alert"></p>')
                said = gr.HTML()
            with gr.Column(scale=3, min_width=300):
                stems = gr.HTML(EMPTY)
        start.click(
            _separator_of(studio),
            [song, method],
            [said, stems, start, stop, job],
            show_progress="hidden",
            concurrency_limit=_WAITING,  # the studio lets them wait, and says so
            api_visibility="private",
        )
        stop.click(
            lambda running: running and running.cancel(),
            [job],
            show_progress="hidden",
            api_visibility="private",
        )
    return page


def _separator_of(studio: Studio) -> Any:
    """What the button does: (said, stems, start, stop, job), again and again until it is done."""

    async def separate(song: str | None, method: MethodName) -> AsyncIterator[tuple[Any, ...]]:
        if song is None:
            yield _idle(remark("There is no song yet: drop one above.", error=True))
            return
        job = studio.submit(Path(song), method)
        try:
            while not job.done:
                yield (
                    progress(job, studio.ahead(job)),
                    gr.skip(),
                    gr.update(visible=False),
                    gr.update(visible=True),
                    job,
                )
                await asyncio.sleep(_POLL)
            yield _ended(job)
        finally:
            job.cancel()  # the visitor may have left

    return separate


def _ended(job: Job) -> tuple[Any, ...]:
    try:
        return _idle("", results(job.result()))
    except Cancelled:
        return _idle(remark("Stopped."))
    except (ValueError, OSError) as error:
        return _idle(remark(one_line(error), error=True))
    except Exception as error:  # a bug, or models too large for the device: seen in full as well
        traceback.print_exception(error)
        return _idle(remark(f"{type(error).__name__}: {one_line(error)}", error=True))


def _idle(said: str, stems: Any = None) -> tuple[Any, ...]:
    return (
        said,
        gr.skip() if stems is None else stems,
        gr.update(visible=True),
        gr.update(visible=False),
        None,
    )


def _theme() -> gr.themes.Base:
    """The system's own fonts: nothing is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue="emerald",
        secondary_hue="emerald",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    ).set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")


@contextmanager
def gradio_folder(folder: Path) -> Iterator[None]:
    """While open, gradio keeps uploads in `folder`, and no record of them; it tells nobody."""
    wanted = {"GRADIO_TEMP_DIR": str(folder)}
    wanted |= dict.fromkeys(("GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY"), "False")
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def serving(
    studio: Studio, page: gr.Blocks, results_folder: Path, host: str, port: int, opened: bool
) -> Iterator[str]:
    """Show the page while open; its address.

    Raises:
        OSError: the port cannot be had.
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
            max_file_size=round(studio.limits.megabytes * 1e6),
            theme=_theme(),
            css=STYLE,
            head=head(studio.limits),
        )
    except OSError as error:
        raise OSError(
            f"port {port} of host {host} cannot be used, another program may have it: name another "
            "one with --port"
        ) from error
    try:
        yield address
    finally:
        page.close(verbose=False)
