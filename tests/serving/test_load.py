"""Thousands of requests from many clients: no wrong answer, no crash, no growing memory."""

import asyncio
import json
import random
from pathlib import Path

import httpx
import pytest

import finetune
from finetune.serving.app import ServingLimits, create_app
from tests.serving.test_app import assert_same, expected, rows
from tests.support.servers import running

pytestmark = pytest.mark.slow

REQUESTS, CLIENTS, MALFORMED = 5000, 100, 0.1
BROKEN = [b"", b"{", b"[]", b"null", b"\xff", b'[{"premise": 1}]', b'{"premise": ""}']
WARM, MEBIBYTE = 1000, 2**20


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_five_thousand_requests_of_random_sizes(run_of):
    run = run_of("entailment")
    known_rows = rows("entailment", 300)
    known = expected(run, known_rows, "entailment")
    draw = random.Random(0)
    statuses: dict[int, int] = {}
    memory: list[int] = []

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        kwargs = {"headers": {"Content-Type": "application/json"}}
        if draw.random() < MALFORMED:
            answer = await client.post("/predict", content=draw.choice(BROKEN), **kwargs)
            assert answer.status_code in (400, 422)
        else:
            chosen = draw.choices(range(len(known_rows)), k=draw.choice([1, 1, 1, 2, 5, 20, 64]))
            body = json.dumps([known_rows[n] for n in chosen])
            answer = await client.post("/predict", content=body, **kwargs)
            while answer.status_code == 503:
                statuses[503] = statuses.get(503, 0) + 1
                await asyncio.sleep(0.1)
                answer = await client.post("/predict", content=body, **kwargs)
            assert answer.status_code == 200
            assert_same(answer.json(), [known[n] for n in chosen])
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        if number in (WARM, REQUESTS - 1):
            memory.append(resident())

    async def run_clients(url: str) -> None:
        numbers = iter(range(REQUESTS))

        async def work(client: httpx.AsyncClient) -> None:
            for number in numbers:
                await ask(client, number)

        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=300) as client:
            await asyncio.gather(*(work(client) for _ in range(CLIENTS)))

    served = create_app(finetune.load(run), limits=ServingLimits(max_waiting_rows=512))
    with running(served) as url:
        asyncio.run(run_clients(url))
    refused = statuses[400] + statuses[422]
    assert statuses[200] + refused == REQUESTS
    assert refused > REQUESTS * MALFORMED / 2
    assert memory[1] - memory[0] < 40 * MEBIBYTE, statuses
