"""Runs an application on a port until a signal stops it."""

import signal
import socket

import uvicorn
from fastapi import FastAPI

from task_formats import UsageError

_MAX_CONNECTIONS = 1024
"""Connections and requests in progress; further ones get 503."""
_STOP_SECONDS = 30
"""Time for running requests to finish after a signal."""


def open_socket(host: str, port: int) -> socket.socket:
    """Opens a listening socket; port 0 is any free one. UsageError if that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        what = f"cannot listen on {host} port {port}: {error.strerror or error}"
        raise UsageError(what, cure="Choose another --port or --host.") from None


def run_server(app: FastAPI, listening: socket.socket, *, access_log: bool = False) -> None:
    """Serves until SIGINT or SIGTERM; running requests are finished first."""
    config = uvicorn.Config(
        app,
        log_level="info" if access_log else "warning",
        access_log=access_log,
        server_header=False,
        ws="none",
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_STOP_SECONDS,
        timeout_keep_alive=75,
    )
    # uvicorn sends itself the signal again after the stop: these handlers then get it.
    handlers = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
