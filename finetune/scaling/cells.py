"""The cells of a study: its pre-training runs, each in a folder of its own."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.pretraining.plan import Plan, find_stable_end
from finetune.scaling.flops import Flops, Parameters, count_flops, count_parameters
from finetune.scaling.study_plan import SizeConfig, StudyPlan
from task_formats import UsageError, suggest

CORPUS = "corpus"
"""Folder of the tokenizer and the token ids, which all cells share."""


@dataclass(frozen=True)
class Cell:
    """One pre-training run.

    Attributes:
        name: Folder name, and name on the command line.
        group: Cells of a group differ in their seed and in the factor of the learning rate only.
        plan: The run. Its `corpus.shards` is the name of a folder in the study.
        parent: The cell before it in its chain, whose constant part it continues, or "". Without
            the parent's checkpoint it makes that part itself, with the same result.
        parent_updates: Updates of the constant part of the parent.
        factor: Of the learning rate.
    """

    name: str
    group: str
    plan: Plan
    parent: str
    parent_updates: int
    factor: float

    @property
    def updates(self) -> int:
        """Updates of the run, from the first one."""
        return self.plan.train.updates or 0

    @property
    def context(self) -> int:
        """Tokens in a block."""
        return self.plan.train.context or self.plan.shape.positions

    @property
    def tokens(self) -> int:
        """Predicted tokens D of the run, if all blocks are full."""
        return self.updates * self.plan.train.batch_size * (self.context - 1)

    def count_parameters(self, vocabulary: int | None = None) -> Parameters:
        """Parameters, with the plan's vocabulary by default."""
        return count_parameters(self.plan.shape, vocabulary or self.plan.tokenizer.vocabulary)

    def count_flops(self, vocabulary: int | None = None, length: float | None = None) -> Flops:
        """Training FLOPs of the whole run, with full blocks by default."""
        blocks = self.updates * self.plan.train.batch_size
        size = vocabulary or self.plan.tokenizer.vocabulary
        return count_flops(self.plan.shape, size, blocks, length or self.context)


def plan_cells(study: StudyPlan) -> list[Cell]:
    """Returns all cells, those of one chain together, the cheapest chain first.

    With `schedule: wsd` a chain has the cells of one size, seed and learning rate, from the fewest
    tokens to the most. Otherwise every cell is a chain.

    Raises:
        UsageError: Two sizes have the same name.
    """
    names = _name_sizes(study.sizes)
    chains = [
        _plan_chain(study, size, name, seed, factor)
        for size, name in zip(study.sizes, names, strict=True)
        for seed in study.seeds
        for factor in study.learning_rate.factors
    ]
    if study.train.schedule != "wsd":
        chains = [[cell] for chain in chains for cell in chain]
    chains.sort(key=_cost)
    return [cell for chain in chains for cell in chain]


def _plan_chain(
    study: StudyPlan, size: SizeConfig, size_name: str, seed: int, factor: float
) -> list[Cell]:
    shape = study.build_shape(size)
    decay = study.train.decay
    kind = "" if study.tokens else "c"
    cells: list[Cell] = []
    for amount in sorted(set(study.tokens or study.budgets)):
        updates = study.count_updates(shape, amount)
        train = study.train.model_copy(
            update={
                "learning_rate": study.learning_rate.rate(size.width, factor),
                "seed": seed,
                "updates": updates,
                "evaluations": 1,
                # That at the end of the constant rate is copied before it would be deleted.
                "keep_checkpoints": max(study.train.keep_checkpoints, 3),
            }
        )
        corpus = study.corpus.model_copy(update={"shards": study.corpus.shards or CORPUS})
        group = f"{size_name}-{kind}{format_amount(amount)}"
        name = group + (f"-lr{factor:g}" if len(study.learning_rate.factors) > 1 else "")
        parent, parent_updates = "", 0
        if cells and study.train.schedule == "wsd":
            parent, parent_updates = cells[-1].name, find_stable_end(cells[-1].updates, decay)
        plan = Plan(corpus=corpus, tokenizer=study.tokenizer, shape=shape, train=train)
        name = f"{name}-seed{seed}"
        cells.append(Cell(name, group, plan, parent, parent_updates, factor))
    return cells


def _name_sizes(sizes: Sequence[SizeConfig]) -> list[str]:
    """Names such as 4x128 (layers x width), with more only where these are not unique."""
    for parts in (("layers", "width"), ("layers", "width", "heads", "feed_forward")):
        values = [[getattr(size, part) for part in parts] for size in sizes]
        names = ["x".join(str(value) for value in row if value) for row in values]
        if len(set(names)) == len(names):
            return names
    twice = next(name for name in names if names.count(name) > 1)
    raise UsageError(f"the size {twice} is given twice", where="sizes", cure="Remove one.")


def _cost(chain: Sequence[Cell]) -> float:
    return chain[-1].count_flops().total


def format_amount(value: float) -> str:
    """A number of tokens or FLOPs as a part of a name.

    >>> format_amount(2e5), format_amount(1.6e6), format_amount(3e13)
    ('200k', '1.6M', '3e13')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size <= value < 1000 * size:
            return f"{value / size:g}{unit}"
    return f"{value:g}".replace("e+", "e")


def select_cells(
    cells: Sequence[Cell], only: Sequence[str] = (), shard: tuple[int, int] = (1, 1)
) -> list[Cell]:
    """Returns the cells whose names match any of the globs and that belong to a shard.

    Chains stay together. Each goes to the shard with the least work so far, the largest first, so
    shards take about as long as each other.

    Args:
        cells: All cells.
        only: Globs; empty: all.
        shard: (i, n): the i-th of n parts, from 1.

    Raises:
        UsageError: A glob matches no cell, or there is no such shard.
    """
    names = [cell.name for cell in cells]
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            cure = f"{suggest(pattern, names)} --list names all of them."
            raise UsageError(f"no cell {pattern!r} in this study", where="--only", cure=cure)
    number, count = shard
    if not 1 <= number <= count:
        cure = "The first of four is --shard 1/4."
        raise UsageError(f"there is no part {number} of {count}", where="--shard", cure=cure)
    work, part = [0.0] * count, dict[str, int]()
    for chain in sorted(_split_chains(cells), key=_cost, reverse=True):
        least = work.index(min(work))
        work[least] += _cost(chain)
        part |= {cell.name: least + 1 for cell in chain}
    chosen = {name for glob in only or ("*",) for name in fnmatch.filter(names, glob)}
    return [cell for cell in cells if cell.name in chosen and part[cell.name] == number]


def _split_chains(cells: Sequence[Cell]) -> list[list[Cell]]:
    chains: list[list[Cell]] = []
    for cell in cells:
        if cell.parent:
            chains[-1].append(cell)
        else:
            chains.append([cell])
    return chains
