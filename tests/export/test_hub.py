"""`gptft push` against a stub of the Hub's API."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import close_session

import finetune
from finetune.cli import main
from finetune.data import hub as data_hub
from finetune.export.exporter import export_run
from tests.export.conftest import save_run
from tests.support import jobs


class StubHub(HTTPServer):
    """Answers what an upload asks, and keeps the uploaded files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.created: dict = {}
        self.cards: list[str] = []
        self.refuse = self.hang_up = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: StubHub

    def do_HEAD(self) -> None:
        self.answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.hang_up:
            self.close_connection = True
        elif self.server.refuse:
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        elif self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.answer({"url": f"{self.server.url}/me/mine"})
        elif self.path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": name, **regular} for name in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            commit = {"commitUrl": f"{self.server.url}/me/mine/commit/1", "commitOid": "1"}
            self.answer({"success": True, **commit})
        else:
            self.answer({"error": self.path}, 404)

    def answer(self, content: dict, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stub(monkeypatch):
    """The Hub, as huggingface_hub sees it."""
    server = StubHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    data_hub.is_hub_reachable.cache_clear()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    close_session()
    data_hub.is_hub_reachable.cache_clear()


@pytest.fixture
def run(bases, tmp_path):
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    return save_run(recipe, tmp_path / "run")


@pytest.mark.usefixtures("in_process")
def test_a_run_is_uploaded_and_a_download_predicts_and_is_exported(stub, run, tmp_path, capsys):
    assert main(["push", str(run), "--to", "me/mine"]) == 0
    assert f"{stub.url}/me/mine" in capsys.readouterr().out
    assert stub.created["visibility"] == "private"
    assert {"README.md", "recipe.yaml", "config.json", "head.safetensors"} <= stub.files.keys()
    assert stub.cards == [stub.files["README.md"].decode()]
    written = b"".join(stub.files[name] for name in ("recipe.yaml", "README.md", "result.json"))
    assert str(tmp_path).encode() not in written
    for name, content in stub.files.items():
        (tmp_path / "download" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "download" / name).write_bytes(content)
    rows = jobs.rows("entailment", 3)
    expected = finetune.load(run, "cpu").predict(rows)
    assert finetune.load(tmp_path / "download", "cpu").predict(rows) == expected
    file, out = jobs.write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    assert export_run(tmp_path / "download", "standalone", out, check=file).rows == 3
    assert ModelCard.load(out / "README.md").data.eval_results[0].metric_value == 0.75
    uploaded, stub.files = stub.files, {}
    assert main(["push", str(tmp_path / "download"), "--to", "me/again"]) == 0
    assert stub.files.keys() == uploaded.keys()
    (tmp_path / "download" / "result.json").unlink()
    assert export_run(tmp_path / "download", "standalone", tmp_path / "old", check=file).rows == 3


def test_a_public_repository_is_asked_for(stub, run):
    assert main(["push", str(run), "--to", "me/mine", "--public"]) == 0
    assert stub.created["visibility"] == "public"


def write_files(folder: Path, names: list[str], library: str) -> None:
    for name in names:
        (folder / name).write_text(f"---\nlibrary_name: {library}\n---\n" if "md" in name else "{}")


def test_an_exported_folder_is_uploaded_as_it_is(stub, tmp_path):
    folder = tmp_path / "exported"
    (folder / ".git").mkdir(parents=True)
    names = ["README.md", "model.onnx", "predict.py", "task.json", "tokenizer_config.json"]
    write_files(folder, [*names, ".git/config"], "onnx")
    assert main(["push", str(folder), "--to", "me/mine"]) == 0
    assert sorted(stub.files) == names


def test_of_a_pretrained_base_the_model_is_uploaded(stub, tmp_path):
    model = tmp_path / "base" / "model"
    model.mkdir(parents=True)
    (tmp_path / "base" / "recipe.yaml").write_text("corpus: {train: [books]}\n")
    names = ["README.md", "config.json", "model.safetensors", "tokenizer_config.json"]
    write_files(model, names, "transformers")
    assert main(["push", str(tmp_path / "base"), "--to", "me/mine"]) == 0
    assert sorted(stub.files) == names


def test_a_refusal_is_one_message(stub, run, capsys):
    stub.refuse = True
    assert main(["push", str(run), "--to", "me/mine"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: me/mine: the Hub refused: ")
    assert "hf auth login" in error
    assert "hf_secret" not in error


def test_a_lost_connection_is_one_message(stub, run, capsys):
    stub.hang_up = True
    assert main(["push", str(run), "--to", "me/mine"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: me/mine: the upload broke off: ")
    assert "Run the command again." in error


def test_without_a_network_nothing_is_tried(run, capsys):
    assert main(["push", str(run), "--to", "me/mine"]) == 2
    assert "the Hub is unreachable" in capsys.readouterr().err


def test_other_folders_are_refused(stub, tmp_path, capsys):
    (tmp_path / "README.md").write_text("# A project\n")
    (tmp_path / ".env").write_text("SECRET=1\n")
    assert main(["push", str(tmp_path), "--to", "me/mine"]) == 2
    assert "Not a run directory" in capsys.readouterr().err
    assert not stub.files
