"""Logs the events of a run to the logger "finetune" of Python's logging."""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from finetune.training.events import Evaluated, Event, Finished, Notice, Started
from finetune.training.loop import Step

logger = logging.getLogger("finetune")


def log_events(events: Iterator[Event], folder: Path, is_main_process: bool) -> Iterator[Event]:
    """Passes the events of a run on, after logging them on the main process.

    Updates have the level DEBUG, notices that begin with "warning: " have WARNING, all else has
    INFO. Closing the generator closes `events`.
    """
    with closing(events):  # type: ignore[type-var]
        for event in events:
            if is_main_process:
                _log(event, folder)
            yield event


def _log(event: Event, folder: Path) -> None:
    match event:
        case Started():
            sizes = (event.updates - event.done, event.examples, event.precision, event.device)
            logger.info("%s: %d updates with %d examples, %s on %s", folder, *sizes)
        case Step():
            if logger.isEnabledFor(logging.DEBUG):  # To read the loss waits for the device.
                values = (float(event.losses.total), event.learning_rate)
                logger.debug("%s: update %d, loss %.4f, lr %.2e", folder, event.number, *values)
        case Evaluated():
            logger.info("%s: update %d, %s", folder, event.update, _format(event.scores))
        case Notice():
            level = logging.WARNING if event.text.startswith("warning: ") else logging.INFO
            logger.log(level, "%s: %s", folder, event.text.removeprefix("warning: "))
        case Finished(result):
            for split, scores in result.scores.items():
                logger.info("%s: finished, %s %s", folder, split, _format(scores))


def _format(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
