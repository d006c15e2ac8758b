"""One task, many ways: guessing, asking, from scratch, fine-tuned with and without an LM loss.

`compare(recipe, folder, Design(seeds=(0, 1, 2)))` gives a table; `events` lets you watch. All are
looked up when they are first used: importing this package costs nothing.
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

_HOMES = {
    "Cell": "cells",
    "CellFinished": "study",
    "CellStarted": "study",
    "Design": "cells",
    "Row": "table",
    "ScoreSummary": "table",
    "Table": "table",
    "compare": "study",
    "events": "study",
    "list_cells": "study",
    "plan_cells": "cells",
    "read_table": "study",
}

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
    if name not in _HOMES:
        raise AttributeError(f"module 'finetune.comparison' has no attribute {name!r}")
    return getattr(import_module(f"finetune.comparison.{_HOMES[name]}"), name)
