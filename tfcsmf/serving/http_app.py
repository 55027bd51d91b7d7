"""The HTTP side of the server: limits, timeouts, metrics, logs; on Starlette."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tfcsmf.serving import metrics as metrics_module
from tfcsmf.serving.metrics import Metrics
from tfcsmf.serving.rest import Answer, RestApi, answer_error
from tfcsmf.serving.status import Code, RequestError, invalid

EXPLORER = resources.files("tfcsmf.serving") / "explorer.html"
# The page brings all it needs, and talks to its own server only.
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'",
    "cache-control": "no-cache",
}
# Answered here: too late, too large, too many.
_OVER_LIMITS = (408, 413, 503, 504)
_ACCESS = logging.getLogger("tfcsmf.serving.access")


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
      max_body_bytes: largest request, also after decompression; 413 above it.
      max_rows: most rows of a request to an export of tfcsmf, each of which answers
        with k items; 400 above it.
      max_in_flight: most requests accepted and not yet answered; 503 above it.
      timeout: seconds from a request to its answer; 504 after it. A body that does
        not arrive in that time is answered with 408.
    """

    max_body_bytes: int = 64 * 2**20
    max_rows: int = 10_000
    max_in_flight: int = 1024
    timeout: float = 30.0


def build_app(
    api: RestApi,
    executor: Executor,
    limits: Limits,
    metrics: Metrics,
    is_ready: Callable[[], bool],
    is_draining: Callable[[], bool],
) -> ASGIApp:
    """Returns the application.

    Args:
      api: answers requests; called in `executor`.
      executor: its threads run the models.
      limits: see there.
      metrics: what is counted and shown.
      is_ready: tells whether every model can answer.
      is_draining: tells whether the server is going down; connections are then
        closed with the next answer, so that clients go elsewhere.
    """

    async def ready(request: Request) -> Response:
        good = is_ready() and not is_draining()
        return JSONResponse({"ready": good}, 200 if good else 503)

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def page(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    async def explorer(request: Request) -> Response:
        return HTMLResponse(EXPLORER.read_bytes(), headers=_PAGE_HEADERS)

    app = Starlette(
        routes=[
            Route("/readyz", ready),
            Route("/livez", live),
            Route(metrics_module.PATH, page),
            Route("/explorer", explorer),
            Mount("/", app=_Api(api, executor, limits, metrics)),
        ]
    )
    return _AccessLog(app, is_draining)


class _Api:
    """Everything below `/v1`: reads the body, answers in a worker thread."""

    def __init__(
        self, api: RestApi, executor: Executor, limits: Limits, metrics: Metrics
    ) -> None:
        self._api = api
        self._executor = executor
        self._limits = limits
        self._metrics = metrics
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            answer = await self._answer(scope, Request(scope, receive), began)
        except ClientDisconnect:
            return
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)
        if answer.api or answer.status in _OVER_LIMITS:
            seconds = time.perf_counter() - began
            self._metrics.observe(
                answer.model, answer.api, "REST", answer.code.name, seconds
            )
        scope["tfcsmf.answer"] = answer
        response = Response(answer.body, answer.status, media_type=answer.content_type)
        if answer.status in (408, 413):
            # The rest of the body is still on its way.
            response.headers["connection"] = "close"
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, request: Request, began: float) -> Answer:
        limits = self._limits
        try:
            if self._in_flight > limits.max_in_flight:
                raise RequestError(
                    Code.UNAVAILABLE, "The server has too many requests in flight"
                )
            body = await self._body(request)
        except RequestError as error:
            return answer_error(error)
        path = scope.get("raw_path", b"").decode("latin-1") or scope["path"]
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, self._api.answer, request.method, path, body
        )
        left = limits.timeout - (time.perf_counter() - began)
        try:
            # The thread goes on: the model itself is cancelled by its own timeout.
            return await asyncio.wait_for(asyncio.shield(work), max(left, 0.001))
        except asyncio.TimeoutError:
            work.cancel()
            return answer_error(
                RequestError(
                    Code.DEADLINE_EXCEEDED,
                    f"No answer within {limits.timeout:g} seconds",
                )
            )

    async def _body(self, request: Request) -> bytes:
        limit = self._limits.max_body_bytes
        too_large = RequestError(
            Code.INVALID_ARGUMENT,
            f"Request body too large: the limit is {limit} bytes",
            413,
        )
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > 2 * limit:
            raise too_large
        try:
            body = await asyncio.wait_for(
                _read(request, limit, too_large), self._limits.timeout
            )
        except asyncio.TimeoutError:
            raise RequestError(
                Code.DEADLINE_EXCEEDED, "The request body did not arrive in time", 408
            ) from None
        if request.headers.get("content-encoding", "").lower() == "gzip":
            return _decompressed(body, limit, too_large)
        return body


async def _read(request: Request, limit: int, too_large: RequestError) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= limit:
            parts.append(part)
        elif size > 2 * limit:
            raise too_large
        # In between it is read on: clients look for an answer when all is sent.
    if size > limit:
        raise too_large
    return b"".join(parts)


def _decompressed(body: bytes, limit: int, too_large: RequestError) -> bytes:
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        data = stream.decompress(body, limit + 1)
    except zlib.error:
        raise invalid("The request body is not valid gzip data") from None
    if len(data) > limit:
        raise too_large
    if not stream.eof:
        raise invalid("The request body is not valid gzip data")
    return data


class _AccessLog:
    """Writes a line of JSON per request; closes connections while draining."""

    def __init__(self, app: ASGIApp, is_draining: Callable[[], bool]) -> None:
        self._app = app
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        sent: dict[str, Any] = {"status": 0, "bytes": 0}

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
                if self._is_draining():
                    message["headers"] = [
                        *message["headers"],
                        (b"connection", b"close"),
                    ]
            elif message["type"] == "http.response.body":
                sent["bytes"] += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            if _ACCESS.isEnabledFor(logging.INFO):
                seconds = time.perf_counter() - began
                _ACCESS.info(_line(scope, sent, seconds))


def _line(scope: Scope, sent: dict[str, Any], seconds: float) -> str:
    answer: Answer | None = scope.get("tfcsmf.answer")
    client = scope.get("client") or ("", 0)
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "protocol": "http",
        "client": client[0],
        "method": scope["method"],
        "path": scope.get("raw_path", b"").decode("latin-1"),
        "status": sent["status"],
        "bytes": sent["bytes"],
        "milliseconds": round(seconds * 1000, 3),
        "model": answer.model if answer else "",
        "code": answer.code.name if answer else "",
    }
    return json.dumps(entry)
