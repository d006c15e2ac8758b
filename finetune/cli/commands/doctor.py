"""`gptft doctor`."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from finetune.cli.console import (
    format_bytes,
    format_count,
    print_line,
    show_status,
    silence_libraries,
)
from finetune.cli.options import TASK_OR_RUN_HELP, Overrides, with_recipe_flags
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.cli.task_sources import TaskSource
    from finetune.data.checks import Finding
    from finetune.data.examples import LocatedExample
    from finetune.data.held_out import HeldOutDraw

_PACKAGES = (
    "torch", "transformers", "accelerate", "tokenizers", "safetensors", "datasets", "peft",
    "bitsandbytes", "huggingface_hub",
)  # fmt: skip
_MIN_FREE_BYTES = 5 * 2**30
_MAX_ENCODED = 10_000
"""Rows of a split that are tokenized to see how many are truncated."""


@with_recipe_flags
def doctor(
    overrides: Overrides,
    task: Annotated[
        str | None, Argument(metavar="[TASK|RUN]", help=TASK_OR_RUN_HELP, show_default=False)
    ] = None,
) -> None:
    """Check the installation, and the data of a task or run.

    Example: gptft doctor rte --base gpt2
    """
    silence_libraries()
    problems = _print(check_environment())
    if task is not None:
        from finetune.cli.task_sources import find_task_or_run

        source = find_task_or_run(task, overrides)
        print_line()
        with show_status(f" reading the rows of {source.name}"):
            findings = list(check_data(source))
        splits = list(dict.fromkeys(finding.subject for finding in findings))
        problems += _print(sorted(findings, key=lambda finding: splits.index(finding.subject)))
    print_line()
    color = "yellow" if problems else "green"
    print_line((format_count(problems, "problem") if problems else "No problems.", color))


def _print(findings: "Iterator[Finding] | list[Finding]") -> int:
    """Prints findings as they come; returns the number of problems."""
    problems = 0
    for finding in findings:
        mark = ("! ", "bold yellow") if finding.is_problem else ("  ", "")
        print_line(mark, (f"{finding.subject:<12} ", "cyan"), finding.text)
        problems += finding.is_problem
    return problems


def check_environment() -> "Iterator[Finding]":
    """Yields versions, device, precision, threads, memory, folders and the hub."""
    from finetune.data.checks import Finding
    from finetune.data.hub import hub_cache, is_hub_reachable
    from finetune.distributed.hardware import (
        count_cores,
        count_threads,
        list_devices,
        total_memory,
    )
    from finetune.distributed.setup import choose_precision
    from finetune.storage.files import cache_folder

    system = f"{platform.system()} {platform.machine()}"
    own = importlib.metadata.version("gptft")
    yield Finding("versions", f"gptft {own}, Python {platform.python_version()}, {system}")
    yield Finding("packages", ", ".join(map(_describe_package, _PACKAGES)))
    for device in list_devices():
        size = f", {format_bytes(device.memory)}" if device.memory else ""
        yield Finding("device", f"{device.name} {device.model}{size}".strip())
    precision = choose_precision("auto")
    why = "computed natively" if precision == "bf16" else "bf16 would be slower here"
    yield Finding("precision", f"{precision} by default ({why})")
    threads, cores = count_threads(), count_cores()
    text = f"torch uses {threads} of {format_count(cores, 'core')}"
    yield Finding("threads", text, threads > cores)
    if memory := total_memory():
        yield Finding("memory", format_bytes(memory))
    for subject, folder in (
        ("disk", Path.cwd()),
        ("cache", cache_folder()),
        ("hub cache", hub_cache()),
    ):
        yield _check_folder(subject, folder)
    if is_hub_reachable():
        yield Finding("hub", "huggingface.co answers")
    else:
        yield Finding("hub", "not reachable: only local bases and data sets, and cached ones")


def _describe_package(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} is not installed"


def _check_folder(subject: str, folder: Path) -> "Finding":
    """Free space of a folder that may not exist yet, and whether it can be written."""
    from finetune.data.checks import Finding

    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return Finding(subject, f"{folder} cannot be written", True)
    free = shutil.disk_usage(existing).free
    text = f"{folder}, {format_bytes(free)} free"
    return Finding(subject, text, free < _MIN_FREE_BYTES)


def check_data(source: "TaskSource") -> "Iterator[Finding]":
    """Yields what is notable about the splits of a recipe."""
    from finetune.data.checks import check_splits
    from finetune.data.held_out import HeldOutDraw

    recipe = source.recipe
    task, data = recipe.task.resolve(source.task), recipe.data
    named = {"train": data.train, "evaluate": data.evaluation_split, **data.extra}
    draw = HeldOutDraw(data, task)
    splits: dict[str, list[LocatedExample]] = {}
    for name, split in named.items():
        if split is None:
            continue
        try:
            items, findings = _read_split(draw, name, split)
        except UsageError as error:
            items, findings = [], [_as_finding(name, error)]
        yield from findings
        if items:
            splits[name] = items
    yield from check_splits(task, splits)
    try:
        yield from _check_truncation(source, splits)
    except UsageError as error:
        yield _as_finding("base", error)


def _as_finding(subject: str, error: UsageError) -> "Finding":
    """An error as a problem, which does not keep the other checks from running."""
    from finetune.data.checks import Finding

    text = f"{error.headline.removesuffix('.')}. {error.cure}"
    return Finding(subject, " ".join(text.split()), True)


def _read_split(
    draw: "HeldOutDraw", name: str, split: str
) -> "tuple[list[LocatedExample], list[Finding]]":
    """The examples of a split, and what there is to say of its rows."""
    from finetune.data import ReadReport, build_examples
    from finetune.data.checks import Finding
    from finetune.data.held_out import open_split
    from finetune.data.limits import LimitedRows

    data, task, report = draw.data, draw.task, ReadReport()
    rows = open_split(data, task, split, draw)
    if data.limit is not None:
        rows = LimitedRows(rows, task, data.limit)
    items = build_examples(
        task,
        rows.read(),
        name,
        labelled=name in ("train", "evaluate"),
        on_bad_row="skip",
        report=report,
        indices=rows.indices(),
    )
    examples = list(items)
    text = f"{rows.origin}: {format_count(len(examples), 'example')}"
    if report.unlabelled:
        text += f", {report.unlabelled:,} rows without a label left out"
    if found := rows.describe():
        text += f" ({found})"
    findings = [Finding(name, text, not examples)]
    if report.skipped:
        first = report.skipped[0]
        count = format_count(len(report.skipped), "row")
        what = f"{count} cannot be used; the first: {first.location}: {first.reason}"
        findings.append(Finding(name, what, True))
    return examples, findings


def _check_truncation(
    source: "TaskSource", splits: "dict[str, list[LocatedExample]]"
) -> "Iterator[Finding]":
    """Yields how many examples are longer than the model reads."""
    from finetune.data.checks import Finding
    from finetune.models.pretrained import load_task_tokens
    from task_formats import ViewEncoder

    recipe = source.recipe
    task = recipe.task.resolve(source.task)
    tokens, most = load_task_tokens(recipe.base), recipe.train.max_tokens
    specials = tokens.special_tokens
    encoder = ViewEncoder(task.format, tokens.tokenize, specials, most, task.windows)
    for name, items in splits.items():
        encoded = encoder.encode([item.example for item in items[:_MAX_ENCODED]])
        longer = [one.truncated_tokens for one in encoded if one.truncated_tokens]
        longest = max(len(one.prefix) + max(map(len, one.endings)) for one in encoded)
        text = f"no example is longer than {most} tokens; the longest has {longest}"
        if longer:
            share = len(longer) / len(encoded)
            text = f"{share:.1%} of the examples are truncated to {most} tokens"
        elif windowed := sum(one.windows > 1 for one in encoded):
            text = f"{windowed / len(encoded):.1%} of the examples are read in windows"
        if len(items) > _MAX_ENCODED:
            text += f" (of the first {_MAX_ENCODED:,})"
        yield Finding(name, text, len(longer) > 0.05 * len(encoded))
