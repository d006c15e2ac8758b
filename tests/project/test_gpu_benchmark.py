"""benchmarks/gpu.py runs on a CPU with tiny shapes, and keeps what was measured before an error."""

import json
from importlib import import_module

import pytest

from tests.conftest import ROOT


@pytest.fixture
def bench(monkeypatch):
    """The module; its variable of the environment is restored."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("GPTFT_CACHE", "")
    return import_module("benchmarks.gpu")


@pytest.mark.slow
def test_a_rehearsal_writes_rows_for_every_arm(bench, tmp_path):
    parts = ("card", "update", "llama", "attention", "deterministic", "copies", "checkpoint")
    bench.main(["-o", str(tmp_path), "--rehearse", "--only", *parts])
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: part.get("error") for name, part in document["parts"].items()} == dict.fromkeys(
        parts
    )
    rows = {name: part["result"] for name, part in document["parts"].items()}
    assert [row["arm"] for row in rows["llama"]] == [
        *(f"gptft, packed, λ = {x}, {n} tokens" for n in (16, 32) for x in (0, 0.5)),
        *(f"run_glue way, {n} tokens" for n in (16, 32)),
    ]
    assert all(row["tokens/s"] > 0 for row in rows["llama"])
    assert all(row["default, error"] < 0.01 for row in rows["attention"])
    assert [row["same bits"] for row in rows["deterministic"]] == [True, True]
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("\n## ") == len(parts)
    assert "a rehearsal" in page


def test_a_part_that_fails_keeps_its_rows_and_the_others_run(bench, tmp_path, monkeypatch):
    def measure(context):
        yield {"value": 1}
        raise ValueError("broken")

    monkeypatch.setitem(bench.PARTS, "copies", bench.Part(measure, "Broken", 10))
    bench.main(["-o", str(tmp_path), "--rehearse", "--only", "copies", "card"])
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["copies"]["result"] == [{"value": 1}]
    assert "ValueError: broken" in parts["copies"]["error"]
    assert parts["card"]["result"]


def test_the_flops_of_gpt2_small_are_those_of_its_weights(bench):
    """Without the LM loss the last block counts for the tokens that are read."""
    config = bench.GPT2Config()
    timed = bench.Timed(seconds=1, updates=1, examples=2, tokens=100)
    block = 12 * 768**2
    full = bench.training_flops(config, timed, lm=False, every_state=True)
    attention = 6 * 12 * 768 * 100 * 100 / 2
    assert full == 6 * 12 * block * 100 + attention
    short = bench.training_flops(config, timed, lm=False, every_state=False)
    last = 2 * 768**2 * 100 + (block - 2 * 768**2) * 2
    assert short == 6 * (11 * block * 100 + last) + attention * 11 / 12
