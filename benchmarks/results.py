"""GPT-1's thesis on a small scale: pre-trained or from scratch, with and without the LM loss.

    python -m benchmarks.results --data ../shared/data/glue --search     # learning rates, once
    python -m benchmarks.results --data ../shared/data/glue              # six tasks, five seeds
    python -m benchmarks.results --data ../shared/data/glue --write      # docs/results.md

Called again it goes on where it was. Seeds are the outer loop, so the table is whole for fewer
seeds whenever it is stopped; two processes may share the work with --tasks.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.comparison import CellFinished, Design, Row, ScoreSummary, Table, events, read_table
from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import Recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"


class Share(NamedTuple):
    """How much of a task is used."""

    rows: int | None
    """Of every split; None is all of them."""
    epochs: float
    """Three are the paper's; tasks of many tokens have one, for the time that five seeds take."""


TASKS = {
    "sst2": Share(5000, 3), "cola": Share(None, 3), "rte": Share(None, 1),
    "qnli": Share(5000, 1), "stsb": Share(None, 1), "mrpc": Share(None, 1),
}  # fmt: skip
GRID = (2.5e-4, 5e-4, 1e-3, 2e-3)
SEARCHED, SEARCH_SEED = "sst2", 100
"""The task and the seed of the search: a seed that the table does not have."""
TUNED_RATE, SCRATCH_RATE = 5e-4, 5e-4
"""What --search found best for each arm."""
TRAIN = {
    "train.batch_size": 16,
    "train.max_tokens": 256,
    "train.warmup": 0.1,
    "train.checkpoint_minutes": None,  # cells of minutes: a state is saved on a signal only
}
"""Batches of 16 rather than 32 make more updates."""
ENOUGH = 3
"""Seeds that make an interval."""
ARMS = (("scratch", 0.5), ("finetune", 0.0), ("finetune", 0.5))


class Plan(NamedTuple):
    """What was said on the command line."""

    base: str
    data: Path
    out: Path
    tasks: Sequence[str]
    seeds: tuple[int, ...]
    rates: tuple[float, float]
    """Of fine-tuning, and from scratch."""
    changes: Mapping[str, Any]


def main() -> None:
    """Searches, runs or writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--data", type=Path, required=True, help="a folder with a copy of GLUE")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--rate", type=float, default=TUNED_RATE, help="of fine-tuning")
    parser.add_argument("--scratch-rate", type=float, default=SCRATCH_RATE)
    parser.add_argument("--epochs", type=float, help="the same for all tasks")
    parser.add_argument("--limit", type=int, help="fewer rows, to try the script")
    parser.add_argument("--search", action="store_true", help="try the learning rates")
    parser.add_argument("--write", action="store_true", help="write docs/results.md")
    said = parser.parse_args()
    if said.epochs and said.write:
        parser.error("the page tells of TASKS' own epochs: --epochs is to try something")
    changes = {**TRAIN}
    changes |= {"train.epochs": said.epochs} if said.epochs else {}
    changes |= {"data.limit": said.limit} if said.limit else {}
    seeds, rates = tuple(range(said.seeds)), (said.rate, said.scratch_rate)
    plan = Plan(said.base, said.data, said.out, said.tasks, seeds, rates, changes)
    if said.search:
        search(plan)
    elif said.write:
        PAGE.write_text(write_page(plan), encoding="utf-8")
    else:
        run(plan)


def recipe_of(plan: Plan, task: str, rate: float) -> Recipe:
    """A task's recipe with the values of this study."""
    share = TASKS[task]
    changes = {"base.path": plan.base, "data.path": str(plan.data.resolve())}
    changes |= {"data.limit": share.rows} if share.rows else {}
    changes |= {"train.epochs": share.epochs, **plan.changes, "train.learning_rate": rate}
    return load_recipe(task, changes)


def design_of(plan: Plan, rate: float) -> Design:
    """Three trained arms and the majority class."""
    return Design(plan.seeds, shots=(), scratch={"train.learning_rate": rate})


def run(plan: Plan) -> None:
    """Does every cell, seed after seed."""
    for seed in plan.seeds:
        for task in plan.tasks:
            recipe, design = recipe_of(plan, task, plan.rates[0]), design_of(plan, plan.rates[1])
            only = ["majority", f"*-seed-{seed}"]
            for event in events(recipe, plan.out / task, design, only=only):
                if isinstance(event, CellFinished) and not event.reused:
                    scores = ", ".join(f"{k} {v:.4f}" for k, v in event.result.scores.items())
                    seconds = f"{event.result.seconds:.0f} s"
                    now = time.strftime("%H:%M")
                    print(
                        f"{now} {task} {event.result.cell.name}: {scores} ({seconds})", flush=True
                    )


def search(plan: Plan) -> None:
    """Tries every rate on one task with one seed for one epoch, for both arms alike."""
    plan = _searching(plan)
    for rate in GRID:
        recipe, design = recipe_of(plan, SEARCHED, rate), design_of(plan, rate)
        only = [f"scratch-seed-{SEARCH_SEED}", f"lambda-0.5-seed-{SEARCH_SEED}"]
        for _ in events(recipe, plan.out / f"search-{rate:g}", design, only=only):
            pass
        print(" ".join(_searched(plan, rate)), flush=True)


def _searching(plan: Plan) -> Plan:
    return plan._replace(seeds=(SEARCH_SEED,), changes={**plan.changes, "train.epochs": 1})


def _searched(plan: Plan, rate: float) -> list[str]:
    """A rate, and the first metric from scratch and fine-tuned; empty where it was not tried."""
    plan = _searching(plan)
    recipe, design = recipe_of(plan, SEARCHED, rate), design_of(plan, rate)
    table = read_table(recipe, plan.out / f"search-{rate:g}", design)
    rows = {row.kind: row for row in table.rows}
    kinds = [rows[kind] for kind in ("scratch", "finetune") if kind in rows]
    return [f"{rate:g}", *(f"{row.scores[table.metrics[0]].median:.4f}" for row in kinds)]


def write_page(plan: Plan) -> str:
    """docs/results.md: how it was made, the table, and what it says."""
    tables = {
        task: read_table(
            recipe_of(plan, task, plan.rates[0]),
            plan.out / task,
            design_of(plan, plan.rates[1]),
        )
        for task in plan.tasks
    }
    whole = {task: table for task, table in tables.items() if len(_arms(table)) == len(ARMS)}
    lines = [_HEAD.format(
        base=plan.base, rate=f"{plan.rates[0]:g}", scratch=f"{plan.rates[1]:g}",
        batch=plan.changes["train.batch_size"], tokens=plan.changes["train.max_tokens"],
        searched=SEARCHED, seed=SEARCH_SEED,
    )]  # fmt: skip
    lines += ["", "## Learning rates", "", "| rate | from scratch | fine-tuned |", "|---|---|---|"]
    lines += [
        f"| {' | '.join(found)} |" for rate in GRID if len(found := _searched(plan, rate)) > 1
    ]
    lines += ["", "## The table", "", "| task | epochs | metric | majority |"]
    lines[-1] += " from scratch, λ = 0.5 | pre-trained, λ = 0 | pre-trained, λ = 0.5 | seeds |"
    lines += ["|---|---|---|---|---|---|---|---|"]
    for task, table in whole.items():
        lines += _rows(f"{task} | {recipe_of(plan, task, plan.rates[0]).train.epochs:g}", table)
    return "\n".join([*lines, "", *_findings(whole), ""])


_HEAD = """# Results

GPT-1's thesis on a small scale: the base `{base}` against the same shape from scratch, and
fine-tuning with the auxiliary LM loss against fine-tuning without it. On real data, with several
seeds.

    python -m benchmarks.results --data ../shared/data/glue --search     # learning rates
    python -m benchmarks.results --data ../shared/data/glue              # the table
    python -m benchmarks.results --data ../shared/data/glue --write      # this page

Batches of {batch}, views of at most {tokens} tokens, warm-up over a tenth of the updates; all else
is the paper's. Of SST-2 and QNLI the first 5,000 rows of every split are used. Tasks of few tokens
have three epochs, and the best of them on the evaluation split is shown, in all arms alike, which
flatters all of them a little; the others have one, for the time that five seeds take. Both arms
were given the same rates to choose from, on {searched} with seed {seed}, which the table does not
have: {rate} for fine-tuning, {scratch} from scratch."""


def _rows(name: str, table: Table) -> Iterator[str]:
    majority = next(row for row in table.rows if row.kind == "majority")
    arms = _arms(table)
    for metric in table.metrics:
        cells = [_cell(row, row.scores[metric]) for row in arms.values()]
        seeds = min(len(row.seeds) for row in arms.values())
        floor = f"{majority.scores[metric].median:.3f}"
        yield f"| {name} | {metric} | {floor} | {' | '.join(cells)} | {seeds} |"


def _cell(row: Row, spread: ScoreSummary) -> str:
    flag = f" †{len(row.collapsed)}" if row.collapsed else ""
    return f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f}){flag}"


def _arms(table: Table) -> dict[tuple[str, float], Row]:
    rows = {(row.kind, row.lm_coefficient): row for row in table.rows}
    return {arm: rows[arm] for arm in ARMS if arm in rows}  # type: ignore[index]


def _findings(tables: Mapping[str, Table]) -> Iterator[str]:
    """What the table says, counted: no judgement of ours."""
    yield "Median, and from the lowest to the highest seed. †n: n seeds are no better than the"
    yield f"majority class. With a task's first metric (intervals count from {ENOUGH} seeds on):"
    yield ""
    pairs = {
        "pre-training against from scratch (λ = 0.5 both)": (ARMS[2], ARMS[0]),
        "λ = 0.5 against λ = 0 (pre-trained both)": (ARMS[2], ARMS[1]),
    }
    for name, (one, other) in pairs.items():
        telling = {task: t for task, t in tables.items() if _beats_majority(t, one, other)}
        better = {task: _compare(table, one, other) for task, table in telling.items()}
        mute = [task for task in tables if task not in telling]
        ahead = [task for task, (margin, _) in better.items() if margin > 0]
        clear = [task for task, (margin, apart) in better.items() if margin > 0 and apart]
        behind = [task for task, (margin, _) in better.items() if margin < 0]
        yield (
            f"* {name}: ahead on {len(ahead)} of {len(tables)} ({', '.join(ahead) or 'none'}), "
            f"on {len(clear)} of them with intervals that do not meet ({', '.join(clear) or '-'}); "
            f"behind on {', '.join(behind) or 'none'}; neither beats the majority class on "
            f"{', '.join(mute) or 'none'}, which counts for neither."
        )
    yield ""
    yield "GPT-1 too found the LM loss to help its large tasks (NLI, QQP) and not the small ones"
    yield "(section 5); all of these have fewer than 10,000 rows."


def _beats_majority(table: Table, *arms: tuple[str, float]) -> bool:
    """Whether the median of one of the arms at least is better than the majority class."""
    metric = table.metrics[0]
    majority = next(row for row in table.rows if row.kind == "majority")
    best = max(_arms(table)[arm].scores[metric].median for arm in arms)
    return best > majority.scores[metric].median


def _compare(table: Table, one: tuple[str, float], other: tuple[str, float]) -> tuple[float, bool]:
    """How far the median of one arm is ahead of another's, and whether their intervals part."""
    arms, metric = _arms(table), table.metrics[0]
    first, second = arms[one].scores[metric], arms[other].scores[metric]
    enough = min(len(arms[one].seeds), len(arms[other].seeds)) >= ENOUGH
    apart = first.low > second.high or first.high < second.low
    return first.median - second.median, enough and apart


if __name__ == "__main__":
    main()
