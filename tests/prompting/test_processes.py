"""Two processes evaluate prompts and generate text as one process does."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from finetune.data.rows import RowLocation
from finetune.prompting import evaluate_prompts
from finetune.prompting.generation import DecodingOptions, TextGenerator
from finetune.recipe.schema import BaseConfig, PromptConfig, Recipe
from tests.support import jobs
from tests.support.processes import run_processes


def run_in_two_processes(function, argument, folder: Path) -> list:
    """Calls `function` in two processes; returns what each of them got."""
    run_processes(2, write_result, function, argument, folder, output=folder / "output")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def write_result(function, argument, folder: Path) -> int:
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(function(argument)))
    return 0


def prompt_results(recipe: Recipe) -> list:
    """Scores, intervals and predictions with shared and separate demonstrations."""
    results = [
        [result.scores, result.intervals, [dataclasses.asdict(p) for p in result.predictions]]
        for shared in (True, False)
        for result in evaluate_prompts(recipe, (0, 2), (1,), shared=shared)
    ]
    return json.loads(json.dumps(results))


@pytest.mark.slow
def test_two_processes_predict_what_one_predicts(bases, tmp_path):
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path, held_out=11)
    answers = {"no": " no", "yes": " yes, it is so"}
    prompt = PromptConfig(text="{premise} {hypothesis}", answers=answers)
    recipe = jobs.change(recipe, "task", prompt=prompt)
    first, second = run_in_two_processes(prompt_results, recipe, tmp_path)
    assert first == second
    for mine, theirs in zip(prompt_results(recipe), first, strict=True):
        assert mine[0] == theirs[0]
        for answer, other in zip(mine[2], theirs[2], strict=True):
            assert (answer["id"], answer["label"]) == (other["id"], other["label"])
            assert answer["scores"] == pytest.approx(other["scores"], rel=1e-4)


TEXTS = ["It rained", "He", "", "The letter that she found was", "nobody", "He came late and"]
OPTIONS = (
    DecodingOptions(6),
    DecodingOptions(6, beams=3),
    DecodingOptions(6, temperature=0.9, top_k=9, seed=4),
)


def generated_rows(base: Path) -> list:
    generator = TextGenerator(BaseConfig(path=str(base)), "cpu")
    texts = enumerate([*TEXTS, "and"])
    rows = [(RowLocation("texts.jsonl", n + 1), {"say": text, "n": n}) for n, text in texts]
    return [
        [[row["n"], text] for row, text in generator.generate_rows(rows, "say", options, 2)]
        for options in OPTIONS
    ]


@pytest.mark.slow
def test_two_processes_generate_what_one_generates(bases, tmp_path):
    """Seven rows in batches of two: in the last round only one process has a batch."""
    results = run_in_two_processes(generated_rows, bases("gpt2"), tmp_path)
    alone = generated_rows(bases("gpt2"))
    assert [[n for n, _ in rows] for rows in alone] == [list(range(7))] * 3
    assert results == [alone, alone]
