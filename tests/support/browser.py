"""Headless Chromium, driven through its DevTools protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


class Tab:
    """One page of a browser."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.messages: list[str] = []
        """What the page wrote to the console, and its errors."""

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result; events before it are looked at."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]
            if message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.messages.append(json.dumps(message["params"]))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; waits for a promise."""
        result = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 30) -> None:
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.05)

    def go(self, url: str) -> None:
        """Opens an address and waits until the page is loaded."""
        self.send("Page.navigate", url=url)
        self.wait_for(f"location.href.startsWith({json.dumps(url)})")
        self.wait_for("document.readyState === 'complete'")

    def screenshot(self, path: Path, *, width: int, dark: bool = False) -> None:
        """Saves the whole page as PNG."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        image = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(image["data"]))


@contextmanager
def open_tab() -> Iterator[Tab]:
    """Starts a browser with one empty page."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    client = pytest.importorskip("websockets.sync.client")
    with TemporaryDirectory(prefix="gptft-chromium-", ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                port_file = Path(profile, "DevToolsActivePort")
                deadline = time.monotonic() + 60
                while not (port_file.exists() and port_file.read_text().count("\n")):
                    assert time.monotonic() < deadline, "the browser does not start"
                    time.sleep(0.05)
                port = port_file.read_text().splitlines()[0]
                pages = httpx.get(f"http://127.0.0.1:{port}/json").json()
                [page] = [one for one in pages if one["type"] == "page"]
                with client.connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
                    tab = Tab(socket)
                    for domain in ("Page", "Runtime", "Log"):
                        tab.send(f"{domain}.enable")
                    yield tab
            finally:
                process.terminate()
