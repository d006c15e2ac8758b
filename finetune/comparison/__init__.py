"""Compares ways to solve a task: majority class, prompting, training from scratch, fine-tuning.

`compare(recipe, folder, Design(seeds=(0, 1, 2)))` returns a table; `events` yields progress. Names
are imported on first use, so importing this package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.comparison.cells import Cell, Design, plan_cells
    from finetune.comparison.study import (
        CellFinished,
        CellStarted,
        compare,
        events,
        list_cells,
        read_table,
    )
    from finetune.comparison.table import Row, ScoreSummary, Table

_MODULES = {
    **dict.fromkeys(("Cell", "Design", "plan_cells"), "cells"),
    **dict.fromkeys(("Row", "ScoreSummary", "Table"), "table"),
}
"""Modules of the names that are not in `study`."""

__all__ = [
    "Cell",
    "CellFinished",
    "CellStarted",
    "Design",
    "Row",
    "ScoreSummary",
    "Table",
    "compare",
    "events",
    "list_cells",
    "plan_cells",
    "read_table",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'finetune.comparison' has no attribute {name!r}")
    return getattr(import_module(f"finetune.comparison.{_MODULES.get(name, 'study')}"), name)
