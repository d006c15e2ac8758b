"""A base of the hub is downloaded with progress, here from a server on this machine."""

import functools
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import ROOT

LOAD = """
from finetune.models.pretrained import load_decoder
from finetune.progress import displayed_by
from finetune.recipe.schema import BaseConfig

shown = {}
with displayed_by(lambda p: shown.update({p.description: (p.done, p.total, p.unit)})):
    load_decoder(BaseConfig(path="me/base"))
print(shown)
"""


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for the files of one model, me/base."""

    def __init__(self, *arguments: object, folder: Path) -> None:
        self.folder = folder
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool = False) -> None:
        """Sends the headers of a file, and the file."""
        path = self.folder / self.path.rpartition("/")[2]
        if not self.path.startswith("/me/base/resolve/") or not path.is_file():
            found = self.path == "/"
            self.send_response(200 if found else 404)
            self.send_header("X-Error-Code", "" if found else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", hashlib.sha256(content).hexdigest())
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Prints nothing."""


@pytest.fixture
def endpoint(bases) -> Iterator[str]:
    handler = functools.partial(Hub, folder=bases("gpt2"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_the_download_of_weights_is_counted(endpoint, bases, tmp_path):
    environment = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    for expected in (True, False):  # The second time everything is in the cache.
        done = subprocess.run(
            [sys.executable, "-c", LOAD],
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        size = (bases("gpt2") / "model.safetensors").stat().st_size
        shown = {"downloading model.safetensors": (size, size, "byte")}
        assert done.stdout.strip() == str(shown if expected else {})
