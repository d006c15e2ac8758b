"""Several processes pre-train, ask, write and compare: what one would have found."""

import dataclasses
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from finetune.checkpointing.run_folder import read_log, read_result
from finetune.comparison import Design, compare, read_table
from finetune.comparison import events as compare_events
from finetune.data.rows import RowLocation
from finetune.pretraining import Plan, pretrain
from finetune.pretraining.train import events
from finetune.prompting import evaluate_prompts
from finetune.prompting.generation import DecodingOptions, TextGenerator
from finetune.recipe.schema import BaseConfig, PromptConfig, Recipe
from finetune.training.events import Started
from tests.support import jobs, warm
from tests.support.together import follow, train_together

pytestmark = pytest.mark.usefixtures("no_flush")


def together(how, *arguments, output: Path) -> None:
    """Calls a function in two processes; shows what was said if one of them fails."""
    codes = warm.join(warm.start_many(2, how, *arguments, output=output))
    told = "\n".join(
        path.read_text() for path in sorted(output.parent.glob(f"{output.stem}.[0-9]"))
    )
    assert codes == [0, 0], told


# -- asking ----------------------------------------------------------------------------------------


def asked(recipe: Recipe) -> list:
    """Scores, intervals and answers of three manners, as JSON has them."""
    found = [
        [one.scores, one.intervals, [dataclasses.asdict(p) for p in one.predictions]]
        for shared in (True, False)
        for one in evaluate_prompts(recipe, (0, 2), (1,), shared=shared)
    ]
    return json.loads(json.dumps(found))


def write_asked(recipe: Recipe, folder: Path) -> int:
    import os

    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(asked(recipe)))
    return 0


def with_prompt(recipe: Recipe) -> Recipe:
    answers = {"no": " no", "yes": " yes, it is so"}
    prompt = PromptConfig(text="{premise} {hypothesis}", answers=answers)
    return jobs.change(recipe, "task", prompt=prompt)


def test_two_processes_ask_what_one_asks(bases, tmp_path):
    """Every process has every answer, and each question is asked once."""
    recipe = with_prompt(jobs.recipe("entailment", bases("gpt2"), tmp_path, held_out=11))
    together(write_asked, recipe, tmp_path, output=tmp_path / "ask.output")
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one == two
    for mine, theirs in zip(asked(recipe), one, strict=True):
        assert mine[0] == theirs[0]
        for answer, other in zip(mine[2], theirs[2], strict=True):
            assert (answer["id"], answer["label"]) == (other["id"], other["label"])
            assert answer["scores"] == pytest.approx(other["scores"], rel=1e-4)


# -- free text -------------------------------------------------------------------------------------

TEXTS = ["It rained", "He", "", "The letter that she found was", "nobody", "He came late and"]
DECODINGS = (
    DecodingOptions(6),
    DecodingOptions(6, beams=3),
    DecodingOptions(6, temperature=0.9, top_k=9, seed=4),
)


def written(base: Path) -> list:
    writer = TextGenerator(BaseConfig(path=str(base)), "cpu")
    texts = enumerate([*TEXTS, "and"])
    rows = [(RowLocation("texts.jsonl", n + 1), {"say": text, "n": n}) for n, text in texts]
    return [
        [[row["n"], text] for row, text in writer.write_rows(rows, "say", decoding, 2)]
        for decoding in DECODINGS
    ]


def write_written(base: Path, folder: Path) -> int:
    import os

    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(written(base)))
    return 0


def test_two_processes_write_what_one_writes(bases, tmp_path):
    """Seven rows in batches of two: the last lap has a batch for one of them only."""
    together(write_written, bases("gpt2"), tmp_path, output=tmp_path / "write.output")
    alone = written(bases("gpt2"))
    assert [[n for n, _ in rows] for rows in alone] == [list(range(7))] * 3
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone


# -- pre-training ----------------------------------------------------------------------------------


def plan(folder: Path, **train) -> Plan:
    (folder / "books").mkdir(exist_ok=True)
    lines = [f"The {a} of the {b} rained in {n}." for n, (a, b) in enumerate(PAIRS)]
    (folder / "books" / "one.txt").write_text("\n".join(lines * 3))
    settings = {"learning_rate": 1e-2, "warmup_updates": 2, "batch_size": 5, "updates": 6}
    settings |= {"dropout": 0, "precision": "fp32", "evaluations": 2, "epsilon": 1e-3, **train}
    corpus = {"train": str(folder / "books"), "evaluate": str(folder / "books")}
    return Plan.model_validate(
        {
            "corpus": corpus,
            "tokenizer": {"vocabulary": 280},
            "shape": {"style": "gpt2", "layers": 1, "width": 32, "heads": 2, "positions": 24},
            "train": settings,
        }
    )


PAIRS = [(a, b) for a in ("house", "river", "queen") for b in ("night", "winter", "letter")]


def pretrain_here(plan: Plan, run: Path, stop: int | None = None) -> int:
    return follow(events(plan, run, resume=True), stop)


def weights(run: Path) -> dict:
    return load_file(run / "model" / "model.safetensors")


def test_two_processes_pretrain_what_one_does(tmp_path):
    pretrain(plan(tmp_path), tmp_path / "one")
    train_together(2, plan(tmp_path), tmp_path / "two", how=pretrain_here)
    assert jobs.distance(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-5
    losses, others = (
        [event["loss"] for event in read_log(tmp_path / run) if event["event"] == "train"]
        for run in ("one", "two")
    )
    assert losses == pytest.approx(others, rel=1e-5)
    scores = [read_result(tmp_path / run)["scores"]["evaluate"] for run in ("one", "two")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_two_processes_that_were_stopped_pretrain_to_the_same_bits(tmp_path):
    noisy = plan(tmp_path, dropout=0.1)
    train_together(2, noisy, tmp_path / "whole", how=pretrain_here)
    train_together(2, noisy, tmp_path / "run", stop=3, how=pretrain_here)
    train_together(2, noisy, tmp_path / "run", how=pretrain_here)
    assert jobs.distance(weights(tmp_path / "whole"), weights(tmp_path / "run")) == 0
    logs = [list(read_log(tmp_path / run, seconds=False)) for run in ("whole", "run")]
    assert logs[0] == logs[1]


# -- a study ---------------------------------------------------------------------------------------

DESIGN = Design(seeds=(0,), shots=(1,))
ONLY = ("majority", "ask-*", "lambda-0.5-*")


def compare_here(recipe: Recipe, folder: Path) -> int:
    compare(recipe, folder, DESIGN, only=ONLY)
    return 0


def test_two_processes_make_the_table_of_one(bases, tmp_path):
    settings = {"epochs": 1, "batch_size": 7, "epsilon": 1e-3}
    recipe = with_prompt(jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **settings))
    together(compare_here, recipe, tmp_path / "two", output=tmp_path / "study.output")
    one, two = (compare(recipe, tmp_path / run, DESIGN, only=ONLY) for run in ("one", "two"))
    assert [row._replace(seconds=0) for row in one.rows] == [
        row._replace(seconds=0) for row in two.rows
    ]


def stop_comparing(recipe: Recipe, folder: Path) -> int:
    """Ends itself by a signal after the first update of a trained cell."""
    import os
    import signal

    from finetune.training.events import Interrupted
    from finetune.training.loop import Step

    try:
        for event in compare_events(recipe, folder, DESIGN, only=ONLY):
            if isinstance(event, Step):
                os.kill(os.getpid(), signal.SIGTERM)
    except Interrupted as interrupted:
        return interrupted.exit_code
    return 0


def test_a_cell_that_was_stopped_goes_on_from_its_state(bases, tmp_path):
    recipe = with_prompt(jobs.recipe("entailment", bases("gpt2"), tmp_path / "data"))
    child = warm.start(stop_comparing, recipe, tmp_path / "run", output=tmp_path / "out")
    assert warm.join([child]) == [143], (tmp_path / "out").read_text()
    rest = list(compare_events(recipe, tmp_path / "run", DESIGN, only=ONLY))
    assert [event.done for event in rest if isinstance(event, Started)] == [1]
    whole = compare(recipe, tmp_path / "whole", DESIGN, only=ONLY)
    assert [row.scores for row in read_table(recipe, tmp_path / "run", DESIGN).rows] == [
        row.scores for row in whole.rows
    ]
    cell = "lambda-0.5-seed-0"
    assert jobs.log(tmp_path / "run" / cell) == jobs.log(tmp_path / "whole" / cell)
