"""`aligner serve` from its settings to one server, or to several processes of it, which share nothing but the port and files.

A process that does not answer its parent within seconds counts as hung and is started again, so that this module imports nothing
heavy: torch is imported when a process answers already.
"""

from __future__ import annotations

import logging
import socket
from functools import partial
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from aligner.records import UserError
from aligner.serving.config import ServeConfig
from aligner.serving.connections import TimedConnections, affordable
from aligner.terminal import print_lines

if TYPE_CHECKING:
    from starlette.applications import Starlette

CONNECTIONS = 8  # times --max_requests: clients keep some open for their next request


def serve(config: ServeConfig) -> None:
    """Serve until stopped. UserError where the port is in use or the Aligner cannot be opened."""
    with listening(config.host, config.port) as place:  # before the model is loaded: a port in use is known at once
        from aligner.serving.command import application_of, check_gate, mend_files

        settings = server_settings(config)
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"http://{host}:{place.getsockname()[1]}/v1 (and / to look at)"
        if config.aligner_url and config.mode == "gate":
            check_gate(config)
        if config.workers == 1:
            settings.app = application_of(config)
            print_lines(f"aligner serves at {address}; Ctrl-C stops it")
            uvicorn.Server(settings).run(sockets=[place])
        else:
            mend_files(config)
            application_of(config)  # what cannot be opened is known here
            print_lines(f"aligner serves at {address} in {config.workers} processes; Ctrl-C stops them")
            settings.app, settings.factory = partial(in_a_child, config), True
            tell_of_restarts()
            Multiprocess(settings, [place]).run()
            print_lines("stopped")


def tell_of_restarts() -> None:
    """The parent's log says which process died and is started again."""
    log = logging.getLogger("uvicorn.error")
    log.setLevel(logging.INFO)
    log.addFilter(lambda record: record.levelno > logging.INFO or "died" in record.getMessage())


def server_settings(config: ServeConfig) -> uvicorn.Config:
    """How uvicorn serves, but for the application. It may go to other processes."""
    connections, backlog = affordable(CONNECTIONS * config.max_requests)
    return uvicorn.Config(
        "",
        http=TimedConnections(H11Protocol, connections),  # type: ignore[arg-type]
        backlog=backlog,
        log_level="warning",
        access_log=False,
        server_header=False,
        workers=config.workers,
        # Answers under way when the server is stopped are still sent.
        timeout_graceful_shutdown=int(config.upstream_timeout + config.aligner_timeout) + 5,
    )


def in_a_child(config: ServeConfig) -> Starlette:
    """The application in one of several processes."""
    from aligner.serving.command import application_of

    try:
        return application_of(config)
    except UserError as error:
        print_lines(f"error: {error}")
        raise SystemExit(STARTUP_FAILURE) from None  # any other status would start it again


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. UserError where it cannot."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}. Name another."
        ) from None
