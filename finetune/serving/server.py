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
_KEEP_ALIVE_SECONDS = 75
"""Idle connections stay open longer than those of clients and proxies (nginx: 60 seconds)."""


def open_socket(host: str, port: int) -> socket.socket:
    """Opens a listening socket; port 0 is any free one. UsageError if that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        what = f"cannot listen on {host} port {port}: {error.strerror or error}"
        raise UsageError(what, cure="Choose another --port or --host.") from None


def make_config(app: FastAPI, *, access_log: bool = False) -> uvicorn.Config:
    """Returns the settings of the HTTP server."""
    return uvicorn.Config(
        app,
        log_level="info" if access_log else "warning",
        access_log=access_log,
        server_header=False,
        ws="none",
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_STOP_SECONDS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )


def run_server(app: FastAPI, listening: socket.socket, *, access_log: bool = False) -> None:
    """Serves until SIGINT or SIGTERM; running requests are finished first."""
    # uvicorn sends itself the signal again after the stop: these handlers then get it.
    handlers = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(make_config(app, access_log=access_log)).run(sockets=[listening])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
