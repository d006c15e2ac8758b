"""HTTP servers on a free port, in a thread of this process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from finetune.serving.server import make_config, open_socket


@contextmanager
def running(app: FastAPI, *, access_log: bool = False) -> Iterator[str]:
    """Serves an application during the block; gives its address."""
    server = uvicorn.Server(make_config(app, access_log=access_log))
    with open_socket("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
