"""GPT-1's claims on a small scale: pre-trained or from scratch, with and without the LM loss.

    python -m benchmarks.results --data ../shared/data/glue --search     # learning rates, once
    python -m benchmarks.results --data ../shared/data/glue              # six tasks, five seeds
    python -m benchmarks.results --data ../shared/data/glue --write      # docs/results.md

Run it again to continue. Seeds are the outer loop, so an interrupted study has a complete table
for fewer seeds; two processes may share the work with --tasks.
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
    """Rows of every split; None is all of them."""
    epochs: float
    """Three as in the paper, or one for tasks with long texts, to save time."""


TASKS = {
    "sst2": Share(5000, 3), "cola": Share(None, 3), "rte": Share(None, 1),
    "qnli": Share(5000, 1), "stsb": Share(None, 1), "mrpc": Share(None, 1),
}  # fmt: skip
GRID = (2.5e-4, 5e-4, 1e-3, 2e-3)
SEARCHED, SEARCH_SEED = "sst2", 100
"""Task and seed of the search; the table does not use this seed."""
TUNED_RATE, SCRATCH_RATE = 5e-4, 5e-4
"""What --search found best for each arm."""
TRAIN = {
    "train.batch_size": 16,
    "train.max_tokens": 256,
    "train.warmup": 0.1,
    "train.checkpoint_minutes": None,  # cells take minutes: save on a signal only
}
"""Batches of 16 rather than 32 make more updates."""
ENOUGH = 3
"""Fewest seeds for a range."""
ARMS = (("scratch", 0.5), ("finetune", 0.0), ("finetune", 0.5))


class Plan(NamedTuple):
    """What was options on the command line."""

    base: str
    data: Path
    out: Path
    tasks: Sequence[str]
    seeds: tuple[int, ...]
    rates: tuple[float, float]
    """Learning rates of fine-tuning, and from scratch."""
    changes: Mapping[str, Any]


def main() -> None:
    """Searches learning rates, runs the study or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--data", type=Path, required=True, help="a folder with a copy of GLUE")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument(
        "--rate", type=float, default=TUNED_RATE, help="learning rate of fine-tuning"
    )
    parser.add_argument("--scratch-rate", type=float, default=SCRATCH_RATE)
    parser.add_argument("--epochs", type=float, help="the same for all tasks")
    parser.add_argument("--limit", type=int, help="fewer rows, to try the script")
    parser.add_argument("--search", action="store_true", help="try the learning rates")
    parser.add_argument("--write", action="store_true", help="write docs/results.md")
    options = parser.parse_args()
    if options.epochs and options.write:
        parser.error("the page uses the epochs of TASKS: --epochs is only for trials")
    changes = {**TRAIN}
    changes |= {"train.epochs": options.epochs} if options.epochs else {}
    changes |= {"data.limit": options.limit} if options.limit else {}
    seeds, rates = tuple(range(options.seeds)), (options.rate, options.scratch_rate)
    plan = Plan(options.base, options.data, options.out, options.tasks, seeds, rates, changes)
    if options.search:
        search(plan)
    elif options.write:
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
    """Runs every cell, seed after seed."""
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
    """Tries every learning rate on one task with one seed for one epoch, for both arms."""
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
    """A learning rate, and the first metric from scratch and fine-tuned if they were run."""
    plan = _searching(plan)
    recipe, design = recipe_of(plan, SEARCHED, rate), design_of(plan, rate)
    table = read_table(recipe, plan.out / f"search-{rate:g}", design)
    rows = {row.kind: row for row in table.rows}
    kinds = [rows[kind] for kind in ("scratch", "finetune") if kind in rows]
    return [f"{rate:g}", *(f"{row.scores[table.metrics[0]].median:.4f}" for row in kinds)]


def write_page(plan: Plan) -> str:
    """docs/results.md: the setup, the table, and a summary."""
    tables = {
        task: read_table(
            recipe_of(plan, task, plan.rates[0]),
            plan.out / task,
            design_of(plan, plan.rates[1]),
        )
        for task in plan.tasks
    }
    complete = {task: table for task, table in tables.items() if len(_arms(table)) == len(ARMS)}
    lines = [_HEAD.format(
        base=plan.base, rate=f"{plan.rates[0]:g}", scratch=f"{plan.rates[1]:g}",
        batch=plan.changes["train.batch_size"], tokens=plan.changes["train.max_tokens"],
        searched=SEARCHED, seed=SEARCH_SEED,
    )]  # fmt: skip
    lines += ["", "## Learning rates", "", "| rate | from scratch | fine-tuned |", "|---|---|---|"]
    lines += [
        f"| {' | '.join(cells)} |" for rate in GRID if len(cells := _searched(plan, rate)) > 1
    ]
    lines += ["", "## The table", "", "| task | epochs | metric | majority |"]
    lines[-1] += " from scratch, λ = 0.5 | pre-trained, λ = 0 | pre-trained, λ = 0.5 | seeds |"
    lines += ["|---|---|---|---|---|---|---|---|"]
    for task, table in complete.items():
        lines += _rows(f"{task} | {recipe_of(plan, task, plan.rates[0]).train.epochs:g}", table)
    return "\n".join([*lines, "", *_summarize(complete), ""])


_HEAD = """# Results

A small-scale test of GPT-1's claims on real data with several seeds: the pre-trained base `{base}` against the same
shape from scratch, and fine-tuning with the auxiliary LM loss against fine-tuning without it.

    python -m benchmarks.results --data ../shared/data/glue --search     # learning rates
    python -m benchmarks.results --data ../shared/data/glue              # the table
    python -m benchmarks.results --data ../shared/data/glue --write      # this page

Batch size {batch}, at most {tokens} tokens per sequence, warm-up over a tenth of the updates; everything else as in the
paper. SST-2 and QNLI use the first 5,000 rows of every split. Tasks with short texts are trained for three epochs and
report the best one on the evaluation split, which flatters all arms a little. The others are trained for one epoch,
so that five seeds fit into the time available. Both arms chose from the same learning rates, on {searched} with seed {seed},
which the table does not include: {rate} for fine-tuning, {scratch} from scratch."""  # noqa: E501


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


def _summarize(tables: Mapping[str, Table]) -> Iterator[str]:
    """Counts on how many tasks each arm is better."""
    yield "Median, and range over the seeds. †n: n seeds are no better than the majority class."
    yield f"By the first metric of each task (with at least {ENOUGH} seeds):"
    yield ""
    pairs = {
        "pre-training against from scratch (λ = 0.5 for both)": (ARMS[2], ARMS[0]),
        "λ = 0.5 against λ = 0 (both pre-trained)": (ARMS[2], ARMS[1]),
    }
    for name, (one, other) in pairs.items():
        counted = {task: t for task, t in tables.items() if _beats_majority(t, one, other)}
        results = {task: _compare(table, one, other) for task, table in counted.items()}
        skipped = [task for task in tables if task not in counted]
        better = [task for task, (margin, _) in results.items() if margin > 0]
        disjoint = [task for task, (margin, apart) in results.items() if margin > 0 and apart]
        worse = [task for task, (margin, _) in results.items() if margin < 0]
        yield (
            f"* {name}: better on {len(better)} of {len(tables)} ({', '.join(better) or 'none'}), "
            f"on {len(disjoint)} of them with disjoint ranges ({', '.join(disjoint) or '-'}); "
            f"worse on {', '.join(worse) or 'none'}; not counted, because neither beats the "
            f"majority class: {', '.join(skipped) or 'none'}."
        )
    yield ""
    yield "GPT-1 also found that the LM loss helps its large tasks (NLI, QQP) and not the small"
    yield "ones (section 5). All tasks here have fewer than 10,000 rows."


def _beats_majority(table: Table, *arms: tuple[str, float]) -> bool:
    """Whether the median of at least one arm is better than the majority class."""
    metric = table.metrics[0]
    majority = next(row for row in table.rows if row.kind == "majority")
    best = max(_arms(table)[arm].scores[metric].median for arm in arms)
    return best > majority.scores[metric].median


def _compare(table: Table, one: tuple[str, float], other: tuple[str, float]) -> tuple[float, bool]:
    """Difference of the medians of two arms, and whether their ranges are disjoint."""
    arms, metric = _arms(table), table.metrics[0]
    first, second = arms[one].scores[metric], arms[other].scores[metric]
    enough = min(len(arms[one].seeds), len(arms[other].seeds)) >= ENOUGH
    apart = first.low > second.high or first.high < second.low
    return first.median - second.median, enough and apart


if __name__ == "__main__":
    main()
