"""Results on a real base: gptft beside prompting, training from scratch and run_glue.

    python -m benchmarks.results --data ../shared/data              # search rates, then all cells
    python -m benchmarks.results --data ../shared/data --write      # docs/results.md

A finished cell is a line of benchmarks/cells/<base>.jsonl. A study that was stopped goes on with
the cells that are missing. --tasks, --arms and --seeds choose some, --jobs runs several at once.
"""

import argparse
import json
import multiprocessing
import re
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import finetune
from benchmarks import peers
from finetune.comparison.study import predict_majority
from finetune.data.splits import read_split
from finetune.evaluation.metrics import compute_metrics
from finetune.evaluation.statistics import paired_bootstrap
from finetune.prompting.evaluator import evaluate_prompts
from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import Recipe
from task_formats import Range

FOLDER = Path(__file__).parent / "cells"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
RATES = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4)
SEARCH_SEED = 100
"""Learning rates are chosen with this seed; the table does not use it."""
DEFAULT_RATE = 5e-5
"""For arms whose rate was not searched."""


class Share(NamedTuple):
    """How much of a task is used."""

    folder: str
    """Folder of the data."""
    rows: int | None
    """Rows of every split; None is all of them."""
    epochs: float
    changes: Mapping[str, Any] = {}


TASKS = {
    "sst2": Share("glue", 5000, 1),
    "cola": Share("glue", None, 2),
    "mrpc": Share("glue", None, 3),
    "rte": Share("glue", None, 3),
    "stsb": Share("glue", None, 3),
    "qnli": Share("glue", 5000, 1),
    "copa": Share("copa", None, 3),
    # There is no training part in the copy: the development part is trained on.
    "arc": Share("arc", 500, 3, {"data.train": "validation", "data.evaluate": "test"}),
}
COMMON = {
    "train.max_tokens": 128,
    "train.batch_size": 32,
    "train.precision": "bf16",
    "train.checkpoint_minutes": None,
}
"""The same for all arms that train; so are rows and epochs."""
ARMS: dict[str, Mapping[str, Any]] = {
    "majority": {},
    "0-shot": {},
    "8-shot": {},
    "32-shot": {},
    "scratch": {"base.from_scratch": True, "train.lm_coefficient": 0.5},
    "lambda-0": {"train.lm_coefficient": 0},
    "lambda-0.5": {"train.lm_coefficient": 0.5},
    "lora": {"base.lora": {"rank": 8}},
    "run_glue": {},
}
OURS, PEER = "lambda-0", "run_glue"
TRAINED = ("lambda-0", "run_glue", "lambda-0.5", "lora", "scratch")


class Cell(NamedTuple):
    """One arm on one task with one seed and one learning rate."""

    task: str
    arm: str
    seed: int
    rate: float


class Outcome(NamedTuple):
    """What a cell gives."""

    scores: dict[str, float]
    predictions: list[float]
    """Class number or score of every row of the evaluation split; none in a search."""
    seconds: float
    """Of training with its evaluations, or of prompting; without loading."""
    peak_mib: float
    """Largest memory of the process, or allocated on the GPU."""
    device: str
    jobs: int
    """Cells that shared the device."""


def main() -> None:
    """Runs the missing cells, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", type=Path, required=True, help="a folder with glue, copa, arc")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, help="fewer rows of every split")
    parser.add_argument("--searched", nargs="*", choices=TRAINED, default=list(TRAINED),
                        help="arms whose learning rate is searched")  # fmt: skip
    parser.add_argument("--search-limit", type=int, help="fewer rows of every split in the search")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="to search")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    parser.add_argument("--write", action="store_true", help="write docs/results.md")
    options = parser.parse_args()
    record = Record(record_path(options.base, options.limit))
    if options.write:
        PAGE.write_text(write_page(options, record), encoding="utf-8")
        return
    # On the CPU a new process for every cell: its largest memory is the cell's own.
    cells_per_process = None if torch.cuda.is_available() else 1
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, max_tasks_per_child=cells_per_process) as pool:
        for plan in (plan_search, plan_cells):  # The search decides the rates of the cells.
            missing = [cell for cell in plan(options, record) if cell not in record.outcomes]
            running = {pool.submit(run_cell, options, cell): cell for cell in missing}
            for finished in as_completed(running):
                cell = running[finished]
                if error := finished.exception():
                    print(f"{' '.join(map(str, cell))} failed: {error!r}", flush=True)
                else:
                    record.add(cell, finished.result())
                    print(describe(cell, finished.result()), flush=True)


def describe(cell: Cell, outcome: Outcome) -> str:
    """One line."""
    scores = ", ".join(f"{name} {score:.4f}" for name, score in outcome.scores.items())
    return f"{' '.join(map(str, cell))}: {scores} ({outcome.seconds:.0f} s)"


def record_path(base: str, limit: int | None) -> Path:
    """The file of the finished cells."""
    return FOLDER / f"{Path(base).name}{f'-{limit}-rows' if limit else ''}.jsonl"


def ablation_path(base: str) -> Path:
    """The file of the finished cells of `benchmarks.ablation`."""
    return FOLDER / f"ablation-{Path(base).name}.jsonl"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The finished cells in a file, one a line."""
    text = path.read_text("utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


class Record:
    """The finished cells, one line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[Cell, Outcome] = {}
        for values in read_lines(path):
            cell = Cell(*(values.pop(name) for name in Cell._fields))
            self.outcomes[cell] = Outcome(**values)

    def add(self, cell: Cell, outcome: Outcome) -> None:
        """Appends a finished cell."""
        self.outcomes[cell] = outcome
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**cell._asdict(), **outcome._asdict()}) + "\n")

    def best_rate(self, task: str, arm: str) -> float:
        """The learning rate with the best first metric on the search seed.

        Without a search of its own, LM loss takes the rate of λ = 0, LoRA five times that rate
        (as the profile modern does), and training from scratch the highest rate.
        """
        searched = {
            cell.rate: next(iter(outcome.scores.values()))
            for cell, outcome in self.outcomes.items()
            if (cell.task, cell.arm, cell.seed) == (task, arm, SEARCH_SEED)
        }
        if searched:
            return max(searched, key=searched.__getitem__)
        if arm in ("lambda-0.5", "lora"):
            return self.best_rate(task, OURS) * (5 if arm == "lora" else 1)
        return RATES[-1] if arm == "scratch" else DEFAULT_RATE


def plan_search(options: argparse.Namespace, record: Record) -> Iterator[Cell]:
    """The cells that decide the learning rates."""
    for arm in options.searched:
        for task in options.tasks:
            if arm in options.arms and is_possible(task, arm):
                yield from (Cell(task, arm, SEARCH_SEED, rate) for rate in options.rates)


def plan_cells(options: argparse.Namespace, record: Record) -> Iterator[Cell]:
    """The cells of the table, seed after seed."""
    for seed in options.seeds:
        for task in options.tasks:
            for arm in options.arms:
                if is_possible(task, arm) and (seed == options.seeds[0] or repeats(arm)):
                    yield Cell(task, arm, seed if repeats(arm) else 0, record.best_rate(task, arm))


def repeats(arm: str) -> bool:
    """Whether a seed changes what an arm gives."""
    return arm not in ("majority", "0-shot")


def is_possible(task: str, arm: str) -> bool:
    """Whether a method can do a task: run_glue has no choices, scores cannot be prompted."""
    config = load_recipe(task).task
    if arm == PEER:
        return config.format != "multiple_choice"
    return not arm.endswith("-shot") or config.prompt is not None


def recipe_of(options: argparse.Namespace, cell: Cell) -> Recipe:
    """The recipe of a cell."""
    share = TASKS[cell.task]
    changes = {
        "base.path": options.base,
        "data.path": str((options.data / share.folder).resolve()),
        "train.epochs": share.epochs,
        "train.learning_rate": cell.rate,
        "train.seed": cell.seed,
        **COMMON,
        **share.changes,
        **ARMS[cell.arm],
    }
    limits = (share.rows, options.limit, options.search_limit if cell.seed == SEARCH_SEED else None)
    rows = [rows for rows in limits if rows]
    return load_recipe(cell.task, changes | ({"data.limit": min(rows)} if rows else {}))


def run_cell(options: argparse.Namespace, cell: Cell) -> Outcome:
    """Runs a cell."""
    recipe, arm = recipe_of(options, cell), cell.arm
    task, limit = recipe.task.build(), recipe.data.limit
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    predictions: Sequence[str | float]
    if arm == "majority":
        predictions = [predict_majority(recipe, task)["answer"]] * len(read_gold(recipe))
    elif arm == PEER:
        predictions, seconds = peers.train_run_glue(recipe)
    elif arm.endswith("-shot"):
        shots = int(arm.removesuffix("-shot"))
        [prompted] = evaluate_prompts(recipe, [shots], [cell.seed], task=task, limit=limit)
        predictions = [prediction.label for prediction in prompted.predictions]
    else:
        with tempfile.TemporaryDirectory() as folder:
            seconds = finetune.train(recipe, Path(folder) / "run").seconds
            predictor = finetune.load(Path(folder) / "run")
            found = predictor.evaluate_split(limit=limit).result.predictions
        predictions = [prediction.label for prediction in found]
    if arm not in TRAINED:
        seconds = time.perf_counter() - started
    if gpu:
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    scores = score_answers(recipe, predictions)
    kept = [] if cell.seed == SEARCH_SEED else encode(recipe, predictions)
    return Outcome(scores, kept, round(seconds, 1), round(peak), device_name(), options.jobs)


def device_name() -> str:
    """The GPU, or CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def encode(recipe: Recipe, predictions: Sequence[str | float]) -> list[float]:
    """Class numbers or scores of predictions, which take less room than names."""
    labels = recipe.task.build().labels
    if isinstance(labels, Range):
        return [round(float(score), 4) for score in predictions]
    names = list(labels.names)
    return [names.index(str(label)) for label in predictions]


def decode(recipe: Recipe, encoded: Sequence[float]) -> np.ndarray:
    """(N,) predictions from what `encode` gave."""
    labels = recipe.task.build().labels
    if isinstance(labels, Range):
        return np.array(encoded)
    return np.array(labels.names)[np.array(encoded, int)]


def read_gold(recipe: Recipe) -> list[str | float]:
    """The labels of the evaluation split."""
    task = recipe.task.build()
    examples = read_split(task, recipe.data, "evaluate", limit=recipe.data.limit)
    return [task.labels.name(example.label) for example in examples if example.label is not None]


def score_answers(recipe: Recipe, predictions: Sequence[str | float]) -> dict[str, float]:
    """The task's metrics."""
    positive = recipe.task.build().positive_class
    return compute_metrics(recipe.task.metrics, predictions, read_gold(recipe), positive)


def paired_difference(
    recipe: Recipe, ours: Sequence[Outcome], theirs: Sequence[Outcome], draws: int = 1000
) -> tuple[float, float, float]:
    """The mean difference of the first metric over seeds, and its 95 % interval over rows.

    Every draw takes the same rows for both methods and all seeds.
    """
    metric, positive = recipe.task.metrics[0], recipe.task.build().positive_class
    gold = np.array(read_gold(recipe))

    def mean_score(predictions: Sequence[np.ndarray], rows: np.ndarray) -> dict[str, float]:
        chosen = list(gold[rows])
        scores = [
            compute_metrics([metric], list(one[rows]), chosen, positive) for one in predictions
        ]
        return {metric: float(np.mean([score[metric] for score in scores]))}

    first, second = (
        partial(mean_score, [decode(recipe, outcome.predictions) for outcome in arm])
        for arm in (theirs, ours)
    )
    difference = paired_bootstrap(first, second, len(gold), draws)[metric]
    return difference.value, difference.low, difference.high


def write_page(options: argparse.Namespace, record: Record) -> str:
    """docs/results.md."""
    sections = {
        "Learning rates": [*_rate_table(record)],
        "Scores": [*_score_table(record)],
        "Time and memory": [*_cost_table(record)],
        "Against run_glue": [*_differences(options, record)],
        "Fewer labels": [*_curves()],
        "Why these defaults": [*_ablation_table()],
    }
    parts = [_HEAD.format(base=options.base, seed=SEARCH_SEED)]
    for title, lines in sections.items():
        text = "\n".join(lines)
        if len(re.findall(r"^\|", text, re.MULTILINE)) > 2:  # More than the head of the table.
            parts += [f"## {title}", "", text, ""]
    return "\n".join(parts)


_HEAD = """# Results

Real data and a real base, `{base}`: gptft beside prompting, training from scratch, and
transformers' Trainer the run_glue way on the same rows, epochs, batch size and precision.

    python -m benchmarks.results --data ../shared/data              # search rates, then all cells
    python -m benchmarks.results --data ../shared/data --write      # this page

**Cells that have not been run are missing below**, and so far that is most of them. Trained arms
choose their learning rate from the same five values with seed {seed}, which the tables do not use.
Without a search of its own, λ = 0.5 takes the rate of λ = 0, LoRA five times that rate, and
training from scratch 5e-4. The search on the H200 (2026-11-26) took the first 1,500 rows of every
split; on 2026-11-27, on two cores of an AMD EPYC, run_glue was searched on the same rows of SST-2,
and COPA on all of its rows. The search on QNLI was started again on the CPU.

In the trained cells of gptft but those of QNLI, the extract token E started as a copy of the token
that ends a turn. It now starts as a copy of the newline, which is better (the last table).

**After one epoch on 1,500 rows of QNLI run_glue is ahead.** These are 47 updates, in the midst of
which accuracy leaves chance, so seeds differ much. Before training, states at the extract token
differ little between examples: on the 32 rows of the first update their deviations from their mean
are 0.30 of it (root mean squares) where E is a newline, and 0.15 where it is the end of a turn. So
the first updates move all logits together. Two settings act against this: `head.center_states` and
`train.stratify`. The table has accuracies on 300 rows, and mean task losses of the epoch, after
1,500 other rows drawn by the seed, with the rate 1e-4, on a CPU on 2026-11-27. (The mean of the
states was that of the first forward pass; in gptft it is that of 32 rows.)

| seed | 100 | 101 | 102 |
|---|---|---|---|
| run_glue | 0.760, 0.563 | 0.797, 0.610 | |
| E from the newline (gptft) | 0.753, 0.639 | 0.720, 0.691 | 0.777, 0.607 |
| and states centered | 0.797, 0.570 | 0.697, 0.686 | |
| and updates stratified | 0.770, 0.591 | 0.713, 0.660 | |
| and both | 0.787, 0.539 | 0.763, 0.626 | 0.753, 0.628 |
| E from the end of a turn | 0.697 | 0.733 | 0.623 |
| E from the end of a turn, head reads the last word | 0.773 | 0.620 | 0.793 |

With both, SST-2 (the table's rows and epoch) has 0.893, 0.897 and 0.891 with the rate 1e-4. But
on the first 1,500 rows of CoLA a seed learned nothing. Matthews' correlation after two epochs on
1,043 rows, rate 1e-4:

| seed | 100 | 101 | 102 |
|---|---|---|---|
| neither | 0.321 | 0.329 | |
| states centered | 0.294 | | |
| updates stratified | 0.292 | | |
| both | -0.030 | 0.343 | 0.362 |

So both are off until it is known how often this happens.

The shipped base `tiny` has [a page of its own](results_tiny.md).
"""


def _cells_of(record: Record, task: str, arm: str, *, search: bool = False) -> list[Cell]:
    return [
        cell
        for cell in record.outcomes
        if (cell.task, cell.arm) == (task, arm) and (cell.seed == SEARCH_SEED) == search
    ]


def _rate_table(record: Record) -> Iterator[str]:
    yield f"| task | arm | {' | '.join(f'{rate:g}' for rate in RATES)} |"
    yield "|---" * (len(RATES) + 2) + "|"
    for task in TASKS:
        for arm in TRAINED:
            cells = {cell.rate: cell for cell in _cells_of(record, task, arm, search=True)}
            values = [_first(record.outcomes[cells[r]]) if r in cells else None for r in RATES]
            if cells:
                shown = ["" if value is None else f"{value:.3f}" for value in values]
                yield f"| {task} | {arm} | {' | '.join(shown)} |"


def _score_table(record: Record) -> Iterator[str]:
    yield f"| task | metric | {' | '.join(ARMS)} |"
    yield "|---" * (len(ARMS) + 2) + "|"
    for task in TASKS:
        metrics = load_recipe(task).task.metrics
        for metric in metrics:
            cells = [
                [record.outcomes[cell].scores[metric] for cell in _cells_of(record, task, arm)]
                for arm in ARMS
            ]
            if any(cells):
                yield f"| {task} | {metric} | {' | '.join(map(_spread, cells))} |"
    yield ""
    yield "Median, and (with several seeds) lowest and highest, and the number of seeds."


def _cost_table(record: Record) -> Iterator[str]:
    yield "Medians. Several cells ran at once, one thread each on a CPU, partly beside other work:"
    yield "seconds are comparable only within a task and a device, and only roughly."
    yield ""
    yield "| task | arm | device | at once | seconds | peak MiB |\n|---|---|---|---|---|---|"
    for task in TASKS:
        for arm in ARMS:
            outcomes = [record.outcomes[cell] for cell in _cells_of(record, task, arm)]
            for device, jobs in sorted({(outcome.device, outcome.jobs) for outcome in outcomes}):
                alike = [one for one in outcomes if (one.device, one.jobs) == (device, jobs)]
                seconds = np.median([outcome.seconds for outcome in alike])
                peak = np.median([outcome.peak_mib for outcome in alike])
                yield f"| {task} | {arm} | {device} | {jobs} | {seconds:.0f} | {peak:,.0f} |"


def _differences(options: argparse.Namespace, record: Record) -> Iterator[str]:
    yield f"{OURS} minus {PEER}, first metric: mean over the seeds that both have, and the 95 %"
    yield "interval of a paired bootstrap over rows."
    yield ""
    yield "| task | difference | interval | seeds | time | memory |\n|---|---|---|---|---|---|"
    for task in TASKS:
        arms = {
            arm: {cell.seed: record.outcomes[cell] for cell in _cells_of(record, task, arm)}
            for arm in (OURS, PEER)
        }
        if seeds := sorted(arms[OURS].keys() & arms[PEER].keys()):
            ours, theirs = ([arms[arm][seed] for seed in seeds] for arm in (OURS, PEER))
            recipe = recipe_of(options, Cell(task, OURS, 0, DEFAULT_RATE))
            mean, low, high = paired_difference(recipe, ours, theirs)
            time_ratio = _ratio(ours, theirs, "seconds")
            memory = _ratio(ours, theirs, "peak_mib")
            yield (
                f"| {task} | {mean:+.3f} | {low:+.3f} to {high:+.3f} | {len(seeds)} "
                f"| {time_ratio:.2f} | {memory:.2f} |"
            )


def _curves() -> Iterator[str]:
    """Figures and tables that `gptft compare --fractions` wrote."""
    yield "Fine-tuning with a part of the labels, against prompting: `gptft compare --base"
    yield "smollm2-135m --seeds 0-2 --task sst2 --fractions 0.01 0.05 0.25 1 --shots 0 8`, and for"
    yield "COPA `--fractions 0.05 0.25 1 --shots 0 8 32`, with the settings of the tables. On COPA"
    yield "a few demonstrations are worth more than 100 labels, on SST-2 the question alone more"
    yield "than 50. With 50 to 1,250 labels of SST-2 seeds differ by up to 0.33: its rate,"
    yield "2e-4, was chosen on 1,500 rows, and with fewer a run may learn nothing."
    for task in TASKS:
        table = FOLDER / f"curve-{task}.md"
        if table.exists():
            title, *lines = table.read_text(encoding="utf-8").splitlines()
            yield "\n".join(["", f"##{title}", "", f"![{task}](results_curve_{task}.png)", *lines])


def _ablation_table() -> Iterator[str]:
    yield "Batches of 32, bf16, λ = 0 where nothing else is said. SST-2: the first 2,000 rows, one"
    yield "epoch, accuracy on 872 rows. QNLI: the first 1,500 rows of both parts, one epoch. RTE:"
    yield "all rows, three epochs, accuracy on 277 rows. Medians over seeds, with lowest, highest"
    yield "and number of seeds. `modern` and `paper` are the profiles; every other line changes one"
    yield "thing (`python -m benchmarks.ablation`)."
    yield ""
    yield "With the rate 1e-4 and the same three seeds on a CPU, E as a copy of the newline is"
    yield "better than run_glue on SST-2, and as a copy of the token that ends a turn it is not."
    yield "What counts most is the rate, then dropout that the base never had, then where the new"
    yield "rows start: copies of the base's own tokens, or their mean, but not drawn at random."
    yield ""
    yield "`E from the newline` is today's profile. In cells that do not say so, and in which rows"
    yield "started as copies, E was a copy of the token that ends a text or turn."
    yield ""
    scores: dict[str, dict[tuple[str, str, str], list[float]]] = {}  # By arm and column.
    for path in FOLDER.glob(ablation_path("*").name):
        base = path.stem.removeprefix("ablation-")
        for cell in read_lines(path):
            column = base, cell["task"], cell["device"]
            scores.setdefault(cell["arm"], {}).setdefault(column, []).append(cell["score"])
    columns = sorted({column for arm in scores.values() for column in arm}, reverse=True)
    yield f"| | {' | '.join(map(', '.join, columns))} |"
    yield "|---" * (len(columns) + 1) + "|"
    for arm, found in sorted(scores.items()):
        yield f"| {arm} | {' | '.join(_spread(found.get(column, [])) for column in columns)} |"


def _ratio(ours: Iterable[Outcome], theirs: Iterable[Outcome], name: str) -> float:
    medians = [np.median([getattr(outcome, name) for outcome in arm]) for arm in (ours, theirs)]
    return float(medians[0] / medians[1])


def _first(outcome: Outcome) -> float:
    return next(iter(outcome.scores.values()))


def _spread(scores: Sequence[float]) -> str:
    if not scores:
        return ""
    bounds = f" ({min(scores):.3f} to {max(scores):.3f}; {len(scores)})" if len(scores) > 1 else ""
    return f"{np.median(scores):.3f}{bounds}"


if __name__ == "__main__":
    main()
