"""Model cards: a README.md with metadata that the Hub reads."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from finetune.models.gguf_files import PACKAGES
from finetune.recipe.schema import Recipe
from task_formats import Classes, MultiLabel, Range, Task

MODEL_CARD = "README.md"
RUN_USAGE = """\
The folder is a decoder for transformers, a tokenizer with three more tokens, and the head in
`head.safetensors`. gptft reads all of it (`RUN` is the directory of the run, or a download of this
repository):

```bash
gptft predict RUN rows.csv -o labelled.csv
{export}```

{further}"""
_EXPORT = """\
gptft export RUN --to {format} -o FOLDER   # for use without gptft; --help lists other formats
"""
_FURTHER = "It is also the base of further fine-tuning: `gptft train --task TASK --base RUN`."
_IN_4_BITS = """\
The weights of the decoder are in 4 bits (bitsandbytes), and the adapters that were trained are in
`adapter/`. What `gptft export` writes is in full precision and can be the base of further
fine-tuning."""
_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
"""Our names of metrics to those of the Hub, where they differ."""
_SHOWN_LABELS = 50


class CardContent(NamedTuple):
    """What a card is about."""

    name: str
    """What to call the model."""
    recipe: Recipe
    """The resolved recipe of the run."""
    task: Task
    """Its task, which may be defined in Python."""
    result: Mapping[str, Any]
    """Content of result.json: scores, versions and numbers of rows."""


def build_model_card(
    content: CardContent, usage: str | None = None, library: str = "gptft"
) -> ModelCard:
    """Returns the card of a fine-tuned model. Local files are named without their folders.

    Args:
        content: The run.
        usage: How the folder of the card is loaded, in Markdown. [default: with gptft]
        library: The library that loads it, by its name on the Hub.
    """
    task, recipe = content.task, content.recipe
    if usage is None:
        # Whether a class of transformers holds the model depends on its norm and its bias.
        has_order = isinstance(task.labels, Classes) and task.labels.ordered
        export = _EXPORT.format(format="onnx" if has_order else "standalone")
        usage = RUN_USAGE.format(
            export="" if task.windows else export,
            further=_IN_4_BITS if recipe.base.quantization else _FURTHER,
        )
    sections = {
        f"# {content.name}": _summarize(recipe),
        "## Use": usage,
        "## Task": _describe_task(task),
        "## Scores": _describe_scores(content),
        "## Limits": _describe_limits(content),
        "## Training": _describe_training(content),
    }
    body = "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items())
    return ModelCard(f"---\n{_metadata(content, library).to_yaml()}\n---\n\n{body}\n")


def build_decoder_card(name: str, scores: Mapping[str, Mapping[str, float]]) -> ModelCard:
    """Returns the card of a pretrained decoder.

    Args:
        name: What to call the decoder.
        scores: Split to metric to value.
    """
    metadata = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", tags=["gptft"]
    )
    lines = [
        f"| {metric} | {value:.4f} |" for row in scores.values() for metric, value in row.items()
    ]
    table = "\n".join(["| metric | value |", "|---|---|", *lines])
    about = (
        "A decoder, pretrained on plain text with gptft. It is loaded by `AutoModelForCausalLM` of "
        "transformers, and is the base of `gptft train --base`. It does not follow instructions."
    )
    body = f"# {name}\n\n{about}\n\n## Scores\n\n{table}\n"
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")


def hub_id(path: str | None) -> str | None:
    """The id on the Hub of a base or a data set in a resolved recipe; None for local ones."""
    if path is None or path in ("tiny", *PACKAGES):
        return None
    return None if Path(path).is_absolute() or Path(path).exists() else path


def without_local_paths(recipe: Recipe) -> Recipe:
    """Returns a recipe that names local files and folders without the folders that hold them."""
    data = recipe.data
    values: dict[str, Any] = {"path": hub_id(data.path) or _last_part(data.path)}
    if data.path is None:
        files = {name: getattr(data, name) for name in ("train", "evaluate", "predict")}
        values |= {name: _last_part(file) for name, file in files.items()}
        values["extra"] = {name: _last_part(file) for name, file in data.extra.items()}
    base = {"path": hub_id(recipe.base.path) or _last_part(recipe.base.path)}
    return recipe.model_copy(
        update={
            "data": data.model_copy(update=values),
            "base": recipe.base.model_copy(update=base),
        }
    )


def _last_part(path: str | None) -> str | None:
    return path and Path(path).name


def _metadata(content: CardContent, library: str) -> ModelCardData:
    task, recipe = content.task, content.recipe
    kind = "multiple-choice" if task.format.is_multiple_choice else "text-classification"
    dataset, base = hub_id(recipe.data.path), recipe.base.path
    evaluations = [
        EvalResult(
            task_type=kind,
            dataset_type=dataset or "local",
            dataset_name=_name_data(recipe),
            dataset_config=recipe.data.name if dataset else None,
            dataset_split=split,
            metric_type=_METRICS.get(metric, metric),
            metric_name=metric,
            metric_value=value,
        )
        for split, metric, value in _scores(content)
    ]
    return ModelCardData(
        model_name=content.name,
        base_model=PACKAGES[base].hub_id if base in PACKAGES else hub_id(base),
        datasets=[dataset] if dataset else None,
        library_name=library,
        pipeline_tag=kind,
        tags=["gptft"],
        metrics=[_METRICS.get(metric, metric) for metric in task.metrics],
        eval_results=evaluations or None,
    )


def _scores(content: CardContent) -> Iterator[tuple[str, str, float]]:
    """Split, metric and value of every finite score but the loss."""
    for split, values in content.result["scores"].items():
        for metric, value in values.items():
            if metric in content.task.metrics and value is not None and math.isfinite(value):
                yield split, metric, value


def _name_data(recipe: Recipe) -> str:
    data = without_local_paths(recipe).data
    if data.path:
        return f"{data.path} ({data.name})" if data.name else data.path
    return data.train or "examples given in Python"


def _summarize(recipe: Recipe) -> str:
    base = without_local_paths(recipe).base.path
    text = f"`{base}`, fine-tuned on `{_name_data(recipe)}` with gptft."
    if recipe.base.from_scratch:
        text = f"The shape of `{base}`, trained from random weights on `{_name_data(recipe)}`."
    return f"{text} {recipe.about}".strip()


def _describe_task(task: Task) -> str:
    views = [f"`S {' D '.join(view)} E`" for view in task.format.views]
    reads = f"The model reads {' and '.join(views)}"
    if task.format.is_multiple_choice:
        reads += " for every choice"
    reads += ", where S, D and E are a start, a delimiter and an extract token."
    columns = [
        f"| {_code(field)} | {_code(column if isinstance(column, str) else ', '.join(column))} |"
        for field, column in task.columns.items()
    ]
    table = "\n".join(["| field | column in the data |", "|---|---|", *columns])
    if isinstance(task.labels, Range):
        low, high = task.labels.low, task.labels.high
        return f"{reads} It predicts a score from {low:g} to {high:g}.\n\n{table}"
    names = [_code(name) for name in task.labels.names[:_SHOWN_LABELS]]
    if more := len(task.labels.names) - len(names):
        names.append(f"and {more} more")
    several = ", any number of them at once" if isinstance(task.labels, MultiLabel) else ""
    return f"{reads}\n\n{table}\n\nLabels{several}: {', '.join(names)}."


def _code(text: str) -> str:
    """Text as code in a cell of a table."""
    escaped = text.replace("\n", "\\n").replace("|", "\\|")
    return f"`{escaped}`"


def _describe_scores(content: CardContent) -> str:
    rows = content.result.get("made_with", {}).get("rows", {})
    lines = [f"| {split} | {metric} | {value:.4f} |" for split, metric, value in _scores(content)]
    if not lines:
        return "The run had no evaluation split with labels."
    table = "\n".join(["| split | metric | value |", "|---|---|---|", *lines])
    counts = ", ".join(f"{name} {count:,}" for name, count in rows.items())
    return f"{table}\n\nNumber of rows: {counts}." if counts else table


def _describe_limits(content: CardContent) -> str:
    recipe, most = content.recipe, content.recipe.train.max_tokens
    limits = [
        f"Inputs of more than {most} tokens are read in overlapping windows."
        if content.task.windows
        else f"It reads at most {most} tokens at once. Of longer inputs the longest texts are cut "
        "at their ends.",
        "Every input gets one of the labels above, also one that has nothing to do with the task."
        if isinstance(content.task.labels, Classes)
        else "Scores are not clipped to the range."
        if isinstance(content.task.labels, Range)
        else "A label is predicted from a threshold of its probability, which was chosen on the "
        "evaluation split.",
        "Other languages and domains than those of the training data were not examined, nor was "
        "bias against groups of people.",
    ]
    if recipe.data.evaluation_split:
        limits.append(
            "The best checkpoint was chosen by its scores on the evaluation split, so these scores "
            "are slightly optimistic."
        )
    return "\n".join(f"* {limit}" for limit in limits)


def _describe_training(content: CardContent) -> str:
    versions = content.result.get("made_with", {}).get("versions", {})
    used = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    recipe = without_local_paths(content.recipe).to_yaml().rstrip()
    text = (
        "`gptft train --task recipe.yaml` trains the model again.\n\n<details><summary>recipe.yaml"
        f"</summary>\n\n```yaml\n{recipe}\n```\n\n</details>"
    )
    return f"{text}\n\nVersions: {used}." if used else text
