"""`gptft serve` as a process: it answers as `gptft predict` does, and stops in order."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from finetune.cli import main
from tests.support import processes
from tests.support.jobs import rows

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
httpx = pytest.importorskip("httpx")


@contextmanager
def serving(log: Path, *words: str, **variables: str) -> Iterator[tuple[BaseProcess, str]]:
    """A process `gptft serve` on a free port, and its address; what it prints is in a file."""
    command = ["serve", *words, "--port", "0"]
    process = processes.start(main, command, environment=variables, output=log)
    try:
        while not log.exists() or not (
            address := re.search(r"http://127\.0\.0\.1:\d+(?=\.)", log.read_text())
        ):
            assert process.is_alive(), log.read_text()
            time.sleep(0.01)
        yield process, address[0]
    finally:
        process.kill()


ONE_KIND = pytest.mark.parametrize("trained", ["entailment"], indirect=True)
"""tests/serving has all kinds."""


@ONE_KIND
def test_it_answers_as_predict_does_and_a_signal_lets_requests_finish(trained, tmp_path, capsys):
    many = [{**row, "label": None} for row in rows(trained.kind, 200, seed=7)]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(trained.run), str(tmp_path / "new.jsonl"), "-o", str(out)]) == 0
    predicted = [json.loads(line) for line in out.read_text().splitlines()]
    answers, log = [], tmp_path / "log"
    words = [str(trained.run), "--device", "cpu"]
    with serving(log, *words, GPTFT_SERVE_TOKEN="geheim") as (process, url):
        assert httpx.post(f"{url}/predict", json=many[0]).status_code == 401
        content, sent, stopping = json.dumps(many).encode(), threading.Event(), threading.Event()

        def halves() -> Iterator[bytes]:
            yield content[:100]
            sent.set()
            stopping.wait()
            yield content[100:]

        def ask() -> None:
            headers = {"Authorization": "Bearer geheim", "Content-Type": "application/json"}
            answer = httpx.post(f"{url}/predict", content=halves(), headers=headers, timeout=60)
            answers.extend(answer.json())

        thread = threading.Thread(target=ask)
        thread.start()
        sent.wait()
        # Once this is answered the server has also read the first half of the other request.
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        os.kill(process.pid, signal.SIGTERM)
        stopping.set()
        thread.join()
        process.join(60)
        assert process.exitcode == 0
    printed = log.read_text()
    assert "Stopped." in printed
    assert "geheim" not in printed
    assert "Traceback" not in printed
    for answer, row in zip(answers, predicted, strict=True):
        assert answer["label"] == row["predicted_label"]
        known = {f"probability_{name}": value for name, value in answer["probabilities"].items()}
        assert known == pytest.approx({name: row[name] for name in known}, abs=1e-5)


@ONE_KIND
def test_mistakes_are_one_message(trained, capsys, tmp_path, monkeypatch):
    with serving_socket() as port:
        assert main(["serve", str(trained.run), "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err
    monkeypatch.setenv("GPTFT_SERVE_TOKEN", " ")
    assert main(["serve", str(trained.run), "--port", "0"]) == 2
    assert "GPTFT_SERVE_TOKEN is empty" in capsys.readouterr().err
    monkeypatch.delenv("GPTFT_SERVE_TOKEN")
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert "Not a run directory" in capsys.readouterr().err


@contextmanager
def serving_socket() -> Iterator[int]:
    """A port on which something else listens."""
    from finetune.serving.server import open_socket

    with open_socket("127.0.0.1", 0) as taken:
        yield taken.getsockname()[1]
