"""Compares ways to solve a task: majority class, prompting, training from scratch, fine-tuning.

`compare(recipe, folder, Design(seeds=(0, 1, 2)))` returns a table; `events` yields progress. Names
are imported on first use, so importing this package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.comparison.cells import Cell as Cell
    from finetune.comparison.cells import Design as Design
    from finetune.comparison.cells import plan_cells as plan_cells
    from finetune.comparison.study import compare as compare
    from finetune.comparison.study import events as events
    from finetune.comparison.study import list_cells as list_cells
    from finetune.comparison.study import read_table as read_table
    from finetune.comparison.table import Row as Row
    from finetune.comparison.table import ScoreSummary as ScoreSummary
    from finetune.comparison.table import Table as Table
    from finetune.training.events import CellFinished as CellFinished
    from finetune.training.events import CellStarted as CellStarted


def __getattr__(name: str) -> Any:
    for module in ("cells", "table", "study"):
        if found := vars(import_module(f"finetune.comparison.{module}")).get(name):
            return found
    raise AttributeError(f"module 'finetune.comparison' has no attribute {name!r}")
