"""A run behind HTTP: the answers of `gptft predict`, and a clear answer to every other request."""

import asyncio
import json
import logging
import re
import threading
from pathlib import Path

import httpx
import pytest

import finetune
from finetune.serving import app as app_module
from finetune.serving.app import ServingLimits, create_app
from task_formats import FORMATS, Classes, Task
from tests.support import jobs
from tests.support.servers import running

KINDS = ("entailment", "score", "multiple_choice")
CLIENTS = 200


def rows(kind: str, count: int, seed: int = 5) -> list[dict]:
    """Rows with only the columns that the task reads."""
    columns = jobs.TASKS[kind].build().without_labels().text_columns
    return [{name: row[name] for name in columns} for row in jobs.rows(kind, count, seed)]


def expected(run: Path, many: list[dict], kind: str) -> list[dict]:
    """What the server must answer, from the predictor itself."""
    predictor = finetune.load(run)
    if kind == "score":
        return [{"score": prediction.label} for prediction in predictor.predict(many)]
    names = predictor.task.labels.names
    return [
        {"label": one.label, "probabilities": dict(zip(names, one.scores, strict=False))}
        for one in predictor.predict(many)
    ]


def assert_same(answers: list[dict], known: list[dict]) -> None:
    assert len(answers) == len(known)
    for answer, other in zip(answers, known, strict=True):
        assert answer.keys() == other.keys()
        assert answer.get("label") == other.get("label")
        numbers = answer.get("probabilities", answer)
        assert numbers == pytest.approx(other.get("probabilities", other), abs=1e-5)


@pytest.fixture
def served(run_of):
    """An application over the entailment run."""
    return create_app(finetune.load(run_of("entailment")), title="mine")


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_and_many_get_the_answers_of_predict(kind, run_of):
    many, run = rows(kind, 20), run_of(kind)
    known = expected(run, many, kind)
    with running(create_app(finetune.load(run))) as url:
        answers = httpx.post(f"{url}/predict", json=many).json()
        single = [httpx.post(f"{url}/predict", json=row).json() for row in many[:4]]
        document = httpx.get(f"{url}/schema").json()
    assert_same(answers, known)
    assert_same(single, known[:4])
    row, prediction = (document["components"]["schemas"][n] for n in ("Row", "Prediction"))
    assert row["properties"].keys() == many[0].keys()
    if kind != "score":
        assert tuple(prediction["properties"]["label"]["enum"]) == tuple(
            jobs.TASKS[kind].build().labels.names
        )


def test_two_hundred_clients_at_once_get_their_own_answers(run_of, monkeypatch):
    many, run = rows("entailment", CLIENTS), run_of("entailment")
    known = expected(run, many, "entailment")
    predictor, sizes = finetune.load(run), []
    stream = predictor.stream

    def watched(examples):
        sizes.append(len(examples))
        return stream(examples)

    monkeypatch.setattr(predictor, "stream", watched)

    async def ask(url: str) -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            return await asyncio.gather(*(client.post(f"{url}/predict", json=r) for r in many))

    with running(create_app(predictor)) as url:
        answers = asyncio.run(ask(url))
    assert {answer.status_code for answer in answers} == {200}
    assert_same([answer.json() for answer in answers], known)
    assert sum(sizes) == CLIENTS
    assert len(sizes) < CLIENTS / 2


GOOD = {"premise": "It rains.", "hypothesis": "The street is wet."}
BAD = [
    ({}, ["body", "premise"], "missing"),
    ({**GOOD, "premise": "  "}, ["body", "premise"], "blank"),
    ({**GOOD, "premise": ["secret"]}, ["body", "premise"], "string_type"),
    ([GOOD, GOOD, {"premise": "secret"}], ["body", 2, "hypothesis"], "missing"),
    ([GOOD, "secret"], ["body", 1], None),
    ([], ["body"], "too_short"),
    ([GOOD] * 5, ["body"], "too_long"),
    ("secret", ["body"], None),
    (None, ["body"], None),
]


@pytest.mark.parametrize(("body", "place", "kind"), BAD)
def test_a_bad_row_is_named_with_its_field_and_not_repeated(body, place, kind, run_of):
    served = create_app(finetune.load(run_of("entailment")), limits=ServingLimits(max_rows=4))
    with running(served) as url:
        answer = httpx.post(f"{url}/predict", json=body)
    assert answer.status_code == 422
    first = answer.json()["detail"][0]
    assert first["loc"] == place
    assert kind in (None, first["type"])
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"premise": NaN}', b"1e999", b"\x00"],
)
def test_malformed_bodies_are_refused(content, served):
    headers = {"Content-Type": "application/json"}
    with running(served) as url:
        answer = httpx.post(f"{url}/predict", content=content, headers=headers)
        assert answer.status_code in (400, 422)
        assert answer.json()["detail"]
        surrogate = b'{"premise": "\\ud800", "hypothesis": "b"}'
        answer = httpx.post(f"{url}/predict", content=surrogate, headers=headers)
        assert answer.status_code == 422
        assert "surrogate" in answer.json()["detail"][0]["msg"]
        assert httpx.post(f"{url}/predict", json=GOOD).status_code == 200


def test_a_body_that_is_too_large_is_refused_with_and_without_its_length(run_of):
    predictor = finetune.load(run_of("entailment"))
    served = create_app(predictor, limits=ServingLimits(max_body_bytes=1000))
    large = json.dumps({**GOOD, "premise": "x" * 1000}).encode()
    with running(served) as url:
        for content in (large, iter([large[:600], large[600:]])):
            answer = httpx.post(f"{url}/predict", content=content)
            assert answer.status_code == 413
            assert answer.json() == {"detail": "The body has more than 1,000 bytes."}
        assert httpx.post(f"{url}/predict", json=GOOD).status_code == 200


def test_a_full_queue_answers_503_and_recovers(run_of, monkeypatch):
    predictor, go, busy = finetune.load(run_of("entailment")), threading.Event(), threading.Event()
    stream = predictor.stream

    def slow(examples):
        busy.set()
        go.wait()
        return stream(examples)

    monkeypatch.setattr(predictor, "stream", slow)
    served = create_app(predictor, limits=ServingLimits(max_rows=2, max_waiting_rows=2))

    async def ask(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            first = asyncio.create_task(client.post(f"{url}/predict", json=GOOD))
            await asyncio.to_thread(busy.wait)
            second = asyncio.create_task(client.post(f"{url}/predict", json=[GOOD, GOOD]))
            while (await client.get(f"{url}/health")).json()["waiting_rows"] < 2:
                await asyncio.sleep(0.01)
            third = await client.post(f"{url}/predict", json=GOOD)
            go.set()
            return [
                await first,
                await second,
                third,
                await client.post(f"{url}/predict", json=GOOD),
            ]

    with running(served) as url:
        answers = asyncio.run(ask(url))
    assert [answer.status_code for answer in answers] == [200, 200, 503, 200]
    assert answers[2].headers["Retry-After"] == "1"


def test_an_error_of_the_model_is_a_500_and_the_server_goes_on(run_of, monkeypatch):
    predictor = finetune.load(run_of("entailment"))
    stream = predictor.stream
    with running(create_app(predictor)) as url:
        monkeypatch.setattr(predictor, "stream", lambda examples: 1 / 0)
        assert httpx.post(f"{url}/predict", json=GOOD).status_code == 500
        monkeypatch.setattr(predictor, "stream", stream)
        assert httpx.post(f"{url}/predict", json=GOOD).status_code == 200


def test_a_token_protects_everything_but_health_and_page_and_is_never_logged(run_of, caplog):
    caplog.set_level(logging.DEBUG)
    token = "geheim-0815-ä"
    served = create_app(finetune.load(run_of("entailment")), token=token)
    with running(served, access_log=True) as url:
        for name in ("uvicorn.access", "uvicorn.error"):
            logging.getLogger(name).addHandler(caplog.handler)
        for path in ("/predict", "/tokens"):
            answer = httpx.post(url + path, json=GOOD)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert httpx.get(f"{url}/schema").status_code == 401
        for wrong in (b"Bearer geheim", b"Basic " + token.encode(), b"Bearer", b"\xff"):
            headers = {b"Authorization": wrong}
            assert httpx.post(f"{url}/predict", json=GOOD, headers=headers).status_code == 401
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        assert httpx.get(url).status_code == 200
        assert httpx.get(url).text.count("geheim") == 0
    assert "GET /health" in caplog.text
    assert "geheim" not in caplog.text


def test_the_right_token_is_accepted(run_of):
    with running(create_app(finetune.load(run_of("entailment")), token="abc")) as url:
        headers = {"Authorization": "Bearer abc"}
        assert httpx.post(f"{url}/predict", json=GOOD, headers=headers).status_code == 200
        assert httpx.get(f"{url}/schema", headers=headers).status_code == 200


def test_tokens_make_up_the_texts(served):
    with running(served) as url:
        [view] = httpx.post(f"{url}/tokens", json=GOOD).json()
        assert httpx.post(f"{url}/tokens", json=[GOOD]).status_code == 422
    texts = ["".join(t["text"] for t in view["tokens"] if t["template"] == n) for n in (0, 1)]
    assert texts == list(GOOD.values())
    assert [t["text"] for t in view["tokens"] if t["template"] is None] == ["S", "D", "E"]
    assert view["removed_tokens"] == 0


def test_a_task_defined_in_python_reads_its_own_rows(run_of):
    run = run_of("classification")
    task = Task(
        FORMATS["classification"],
        {"text": "text", "label": "label"},
        Classes.of({0: "bad", 1: "middling", 2: "good"}),
        convert_row=lambda row: {"text": " ".join(row["words"])},
    )
    known = finetune.load(run).predict([{"text": "a fine day"}])
    with running(create_app(finetune.load(run, task=task))) as url:
        answer = httpx.post(f"{url}/predict", json={"words": ["a", "fine", "day"]}).json()
    assert answer["label"] == known[0].label
    assert list(answer["probabilities"].values()) == pytest.approx(known[0].scores, abs=1e-5)


def test_the_page_needs_nothing_from_elsewhere():
    page = Path(app_module.__file__).with_name("page.html").read_text(encoding="utf-8")
    assert not re.findall(r"https?://|src=|@import|innerHTML", page)
