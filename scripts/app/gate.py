"""ASGI middleware that answers only what the page itself asks for.

The server of gradio has more routes than the page uses, takes requests that another site's page
makes the browser send, and takes bodies of any length and duration.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

API = "/gradio_api/"
_UPLOAD = f"{API}upload"
_WRITE = {_UPLOAD, *(API + name for name in ("queue/join", "run/predict", "cancel", "reset"))}
_READ = ("file=", "heartbeat/", "queue/data", "startup-events", "upload_progress")
_JSON_BYTES = 100_000
_FORM_BYTES = 10_000  # around a file
_UPLOADING = 20  # files at a time


class _Refused(Exception):
    """A request that is not answered: (status, reason)."""


class Gate:
    """Refuses requests from elsewhere, of other routes, too large or too slow."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        names: Collection[str],
        others: Collection[str],
        largest: int,
        make_room: Callable[[], None],
        patience: float,
    ):
        """Stand before an application.

        Args:
            app: gradio's.
            names: of this computer; addresses are always accepted.
            others: names by which visitors reach it, such as a proxy's.
            largest: file, in bytes.
            make_room: called before an upload.
            patience: seconds without a byte of a body until a request is dropped.
        """
        self._app, self._make_room, self._patience = app, make_room, patience
        self._others = {name.lower() for name in others}
        self._names = {name.lower() for name in names} | self._others
        self._largest = largest + _FORM_BYTES
        self._uploading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_sender(scope["path"], headers)
            self._check_route(scope["method"], scope["path"])
            await self._pass(scope, self._limited(scope["path"], headers, receive), noted)
        except _Refused as refused:
            if not begun:
                status, reason = refused.args
                await PlainTextResponse(reason, status)(scope, receive, send)
        except ClientDisconnect:
            pass

    def _check_sender(self, path: str, headers: Headers) -> None:
        """Refuse requests that pages of other sites make a visitor's browser send."""
        host, origin = headers.get("host", "").lower(), headers.get("origin", "").lower()
        if not self._is_ours(_hostname(f"//{host}")):  # its owner's name server may point here
            raise _Refused(421, "unknown host: name it with --names")
        same = urlsplit(origin).netloc == host if _hostname(origin) else False
        if origin and not same and _hostname(origin) not in self._others:
            raise _Refused(403, "the request is from another site")
        site = headers.get("sec-fetch-site", "none")
        if path.startswith(API) and site not in ("none", "same-origin"):
            raise _Refused(403, "the request is from another site")

    def _is_ours(self, name: str) -> bool:
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return name in self._names

    @staticmethod
    def _check_route(method: str, path: str) -> None:
        """Refuse what the page does not use, and files of other servers."""
        if method == "POST":
            known = path in _WRITE
        elif path.startswith(API):
            known = path.removeprefix(API).startswith(_READ) and "://" not in path
        else:
            known = method in ("GET", "HEAD")
        if not known:
            raise _Refused(404, "not found")

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != _UPLOAD:
            await self._app(scope, receive, send)
            return
        if self._uploading >= _UPLOADING:
            raise _Refused(503, "too many uploads at a time: try again later")
        self._uploading += 1
        try:
            await run_in_threadpool(self._make_room)
            await self._app(scope, receive, send)
        finally:
            self._uploading -= 1

    def _limited(self, path: str, headers: Headers, receive: Receive) -> Receive:
        """Return a `receive` that stops at a body that is too long or does not arrive."""
        limit = self._largest if path == _UPLOAD else _JSON_BYTES
        if int(headers.get("content-length", "0")) > limit:
            raise _Refused(413, "the request is too large")
        length, more = 0, True

        async def limited() -> Message:
            nonlocal length, more
            if not more:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._patience)
            except asyncio.TimeoutError:
                raise _Refused(408, "the request did not arrive") from None
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
            if length > limit:
                raise _Refused(413, "the request is too large")
            return message

        return limited


def own_names(host: str, computer: str) -> set[str]:
    """Return the names by which browsers reach this computer without a proxy."""
    return {"localhost", host, computer, f"{computer}.local", computer.partition(".")[0]}


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
