"""What the server counts, in Prometheus' text form, and its access log. Neither holds any text of anybody."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aligner.jsonl import LineLog
from aligner.records import UserError
from aligner.serving.corrections import Done

log = logging.getLogger("aligner")
GONE = 499  # the client has disconnected and never sees the status
METHODS = {"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"}
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)  # bounds of the histograms


class LayerMetrics:
    """Requests, answers by action, tokens and seconds since the start, in a registry of their own.

    UserError where Prometheus' client is not installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError:
            raise UserError("--metrics needs Prometheus' client: pip install 'qac-aligner[metrics]'.") from None
        here: dict[str, Any] = {"registry": CollectorRegistry()}
        timed: dict[str, Any] = {**here, "buckets": SECONDS}
        self._registry, self._gauge = here["registry"], Gauge
        self.requests = Counter("aligner_requests", "requests with their answer", ["route", "status"], **here)
        self.seconds = Histogram("aligner_request_seconds", "from first byte to last", ["route"], **timed)
        self.answers = Counter("aligner_answers", "answers by what was done with them", ["action"], **here)
        self.tokens = Counter("aligner_correction_tokens", "tokens of corrections", **here)
        self.waited = Histogram("aligner_correction_waited_seconds", "until the first forward pass", **timed)
        self.took = Histogram("aligner_correction_seconds", "from the first forward pass on", **timed)

    def count(self, action: str, done: Done | None) -> None:
        """Count an answer by what was done with it, and what its correction took."""
        self.answers.labels(action).inc()
        if done:
            self.tokens.inc(done.tokens)
            self.waited.observe(done.waited)
            self.took.observe(done.took)

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A number that is read when it is asked for."""
        self._gauge(name, about, registry=self._registry).set_function(value)

    def page(self) -> tuple[bytes, str]:
        """What is counted, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class AccessLog:
    """A file of JSON lines, one a request: when, which route, which status, how long, how many bytes. `shared`: other
    processes write to it too. UserError where it cannot be written."""

    def __init__(self, file: str, shared: bool = False) -> None:
        self._file, self._failed = file, False
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            self._log = LineLog(Path(file))
            self._log.start(shared=shared)
        except OSError as error:
            raise UserError(f"--access_log {file}: cannot be written ({error.strerror}). Name another.") from None

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write a line; a disk that is full ends no request."""
        try:
            self._log.append(entry)
        except OSError as error:
            if not self._failed:
                log.warning("%s: requests are not logged (%s)", self._file, error.strerror)
            self._failed = True

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def observed(app: ASGIApp, routes: set[str], metrics: LayerMetrics | None, access: AccessLog | None) -> ASGIApp:
    """The application with its requests counted and logged. Paths that are none of the routes are all 'other'."""

    async def watch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        began, status, sizes = time.monotonic(), GONE, {"in": 0, "out": 0}

        async def counted_receive() -> Message:
            message = await receive()
            sizes["in"] += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            sizes["out"] += len(message.get("body", b""))
            await send(message)

        try:
            await app(scope, counted_receive, counted_send)
        finally:
            route, seconds = scope["path"] if scope["path"] in routes else "other", time.monotonic() - began
            if metrics:
                metrics.requests.labels(route, str(status)).inc()
                metrics.seconds.labels(route).observe(seconds)
            if access:
                method = scope["method"] if scope["method"] in METHODS else "other"
                entry = {"time": round(time.time(), 3), "method": method, "route": route, "status": status}
                with suppress(ValueError):  # closed already
                    access.add(
                        {**entry, "seconds": round(seconds, 3), "bytes_in": sizes["in"], "bytes_out": sizes["out"]}
                    )

    return watch
