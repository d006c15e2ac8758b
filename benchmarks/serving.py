"""`gptft serve` with many clients at once, compared with one request after another.

Clients and server share a process; the clients speak plain HTTP over sockets, which costs little.
"""

import asyncio
import itertools
import json
import threading
from collections.abc import Sequence
from functools import partial

import uvicorn
from torch import manual_seed

from benchmarks import inputs
from benchmarks.harness import Benchmark, Claim, Contestant, Measurement, Scale, clock, main
from finetune.data import open_file
from finetune.distributed.setup import create_accelerator
from finetune.evaluation.predictor import Predictor
from finetune.models.pretrained import load_decoder
from finetune.models.task_model import build_task_model
from finetune.recipe.loading import load_recipe
from finetune.serving.app import create_app
from finetune.serving.server import open_socket

CLIENTS = 64
WARM = 2 * CLIENTS
"""Requests before the clock starts."""


def _measure(scale: Scale, *, base: str, precision: str, clients: int) -> Measurement:
    """Requests of one row each; a client sends the next when one is answered."""
    path = str(inputs.base(scale)) if base == "gpt2-small" else base
    recipe = load_recipe("sst2", {"base.path": path, "train.precision": precision})
    task, loaded = recipe.task.build(), load_decoder(recipe.base)
    manual_seed(0)
    model = build_task_model(loaded, task).eval()
    predictor = Predictor(recipe, task, model, loaded, create_accelerator(precision))
    count = scale.choose(WARM, 256 if base == "gpt2-small" else 1024)
    dev = (row for _, row in open_file(str(scale.data / "glue" / "SST-2" / "dev.tsv")))
    texts = [str(row["sentence"]) for row in itertools.islice(dev, WARM + count)]
    server = uvicorn.Server(uvicorn.Config(create_app(predictor), log_level="warning"))
    with open_socket("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            parts = (texts[:WARM], texts[WARM:])
            return clock(asyncio.run(_ask(port, part, clients)) for part in parts)
        finally:
            server.should_exit = True
            thread.join()


async def _ask(port: int, texts: Sequence[str], clients: int) -> int:
    """Sends every text once; returns how many were answered with a label."""
    remaining = iter(texts)

    async def work() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answered = 0
        for text in remaining:
            body = json.dumps({"sentence": text}).encode()
            head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            writer.write(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            assert b" 200 " in lines[0], lines[0]
            [length] = [line for line in lines if line.startswith(b"content-length:")]
            answer = json.loads(await reader.readexactly(int(length.split(b":")[1])))
            answered += "label" in answer
        writer.close()
        return answered

    return sum(await asyncio.gather(*(work() for _ in range(clients))))


PAIRS = (("gpt2-small", "fp32"), ("gpt2-small", "bf16"), ("tiny", "fp32"))
CONTESTANTS: dict[str, Contestant] = {
    f"{base}, {precision}, {clients} client{'s' * (clients > 1)}": partial(
        _measure, base=base, precision=precision, clients=clients
    )
    for base, precision in PAIRS
    for clients in (1, CLIENTS)
}

BENCHMARK = Benchmark(
    "serving",
    "SST-2's validation rows, one row per request",
    "row",
    CONTESTANTS,
    tuple(
        Claim(f"{base}, {precision}, {CLIENTS} clients", f"{base}, {precision}, 1 client", 3.0)
        for base, precision in PAIRS
    ),
)

if __name__ == "__main__":
    main(BENCHMARK)
