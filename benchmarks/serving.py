"""`gptft serve` with many clients at once, compared with one request after another."""

import asyncio
import itertools
import threading
from functools import partial

import httpx
import uvicorn
from torch import manual_seed

from benchmarks import inputs
from benchmarks.gptft import WIDTH
from benchmarks.harness import Benchmark, Claim, Contestant, Measurement, Scale, clock, main
from finetune.distributed.setup import create_accelerator
from finetune.evaluation.predictor import Predictor
from finetune.models.pretrained import load_decoder
from finetune.models.task_model import build_task_model
from finetune.recipe.loading import load_recipe
from finetune.serving.app import create_app
from finetune.serving.server import open_socket

CLIENTS = 64
WARM = 8
"""Requests before the clock starts."""


def _measure(scale: Scale, *, base: str, clients: int) -> Measurement:
    """Requests of one row each; a client sends the next when one is answered."""
    path = str(inputs.base(scale)) if base == "gpt2" else base
    changes = {"base.path": path, "train.max_tokens": WIDTH, "train.precision": "fp32"}
    recipe = load_recipe("rte", changes)
    task, loaded = recipe.task.build(), load_decoder(recipe.base)
    manual_seed(0)
    model = build_task_model(loaded, task).eval()
    predictor = Predictor(recipe, task, model, loaded, create_accelerator("fp32"))
    dev = inputs.rte(scale, "dev")
    count = scale.choose(64, 277 if base == "gpt2" else 2000)
    rows = [
        {"sentence1": row["sentence1"], "sentence2": row["sentence2"]}
        for row in itertools.islice(itertools.cycle(dev), count)
    ]
    server = uvicorn.Server(uvicorn.Config(create_app(predictor), log_level="warning"))
    with open_socket("127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/predict"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            return clock(len(_ask(url, part, clients)) for part in (rows[:WARM], rows))
        finally:
            server.should_exit = True
            thread.join()


def _ask(url: str, rows: list[dict[str, str]], clients: int) -> list[str]:
    """The labels of all rows."""

    async def ask() -> list[str]:
        remaining, labels = iter(rows), []

        async def work(client: httpx.AsyncClient) -> None:
            for row in remaining:
                answer = await client.post(url, json=row)
                labels.append(answer.raise_for_status().json()["label"])

        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(limits=limits, timeout=600) as client:
            await asyncio.gather(*(work(client) for _ in range(clients)))
        return labels

    return asyncio.run(ask())


CONTESTANTS: dict[str, Contestant] = {
    "gpt2-small, 1 client": partial(_measure, base="gpt2", clients=1),
    f"gpt2-small, {CLIENTS} clients": partial(_measure, base="gpt2", clients=CLIENTS),
    "tiny, 1 client": partial(_measure, base="tiny", clients=1),
    f"tiny, {CLIENTS} clients": partial(_measure, base="tiny", clients=CLIENTS),
}

BENCHMARK = Benchmark(
    "serving",
    "RTE's validation rows, one row per request, fp32",
    "row",
    CONTESTANTS,
    (
        Claim(f"gpt2-small, {CLIENTS} clients", "gpt2-small, 1 client", 3.0),
        Claim(f"tiny, {CLIENTS} clients", "tiny, 1 client", 3.0),
    ),
)

if __name__ == "__main__":
    main(BENCHMARK)
