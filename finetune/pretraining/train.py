"""Pre-training from a plan to a folder that is a base: a generator of events, and its consumer."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from finetune.distributed.fsdp import fsdp_requested
from finetune.distributed.setup import choose_precision, create_accelerator, deterministic_kernels
from finetune.pretraining.plan import Plan, dump_plan
from finetune.pretraining.preparation import prepare_pretraining
from finetune.training.events import Event, Result
from finetune.training.runner import finish_run, run
from task_formats import UsageError


def pretrain(
    plan: Plan, folder: Path | str, *, resume: bool = False, overwrite: bool = False
) -> Result:
    """Trains to the end and gives the result; `folder` is then a base.

    Raises UsageError for anything wrong with plan, corpus or folder.
    """
    return finish_run(events(plan, folder, resume=resume, overwrite=overwrite))


def events(
    plan: Plan, folder: Path | str, *, resume: bool = False, overwrite: bool = False
) -> Iterator[Event]:
    """Trains, validates and saves; yields every update and validation as it is done."""
    if fsdp_requested():
        raise UsageError("pre-training has no FSDP", cure="Leave --use_fsdp out: it has DDP.")
    accelerator = create_accelerator(choose_precision(plan.train.precision))
    prepare = partial(prepare_pretraining, plan, Path(folder))
    told = dump_plan(plan)
    options = {"resume": resume, "overwrite": overwrite}
    with deterministic_kernels(plan.train.deterministic):
        yield from run(prepare, Path(folder), accelerator, told, **options)
