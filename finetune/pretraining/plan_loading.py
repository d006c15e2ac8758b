"""Plans as files: found, read, changed by flags, and written with every value."""

from collections.abc import Mapping
from os.path import expanduser
from pathlib import Path
from typing import Any

from finetune.pretraining.plan import CorpusConfig, Plan
from finetune.recipe.loading import check_code_trust
from finetune.recipe.overrides import apply_overrides, read_text, validate
from finetune.recipe.yaml_documents import parse_document, write_document
from task_formats import UsageError, suggest

_TRUST = "trust_remote_code"


def load_plan(name_or_path: str | Path, overrides: Mapping[str, Any] = {}) -> Plan:
    """A shipped plan, or a YAML file, with some values changed by their dotted paths.

    Files that the plan names are looked for beside it, those of `overrides` where the program
    runs. Raises UsageError for a name nobody knows and every fault of the file, with its line.
    """
    path = _find_plan(name_or_path)
    plan = _place_files(parse_plan(read_text(path), str(path)), path.resolve().parent)
    check_code_trust(_TRUST, plan.trust_remote_code, overrides, str(path))
    said = plan.model_dump(exclude_unset=True)
    changed = validate(Plan, apply_overrides(Plan, said, _settle_length(overrides)), {}, "")
    _refuse_idle(changed, overrides)
    return changed


def _settle_length(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """The changes, in which epochs outdo the updates of a plan. UsageError where both are given."""
    if "train.epochs" not in overrides:
        return overrides
    if overrides.get("train.updates") is not None:
        cure = "Give one of --epochs and --updates."
        raise UsageError("both epochs and updates say how long to train", cure=cure)
    return {**overrides, "train.updates": None}


def _refuse_idle(plan: Plan, overrides: Mapping[str, Any]) -> None:
    """UsageError for a change of what a base brings with it."""
    idle = [key for key in overrides if key.partition(".")[0] in ("shape", "tokenizer")]
    if plan.base is not None and idle:
        what = f"{idle[0]} has no effect: the base {plan.base!r} has a shape and tokenizer"
        raise UsageError(what, cure="Leave it out, or train a new decoder without --from.")


def parse_run_plan(text: str, where: str, trust_remote_code: bool = False) -> Plan:
    """What a run was told, with the user's own word on code that comes with its base.

    UsageError where the run alone asks for that code to be run.
    """
    plan = parse_plan(text, where)
    if trust_remote_code:
        return plan.model_copy(update={_TRUST: True})
    check_code_trust(_TRUST, plan.trust_remote_code, (), where)
    return plan


def parse_plan(text: str, where: str = "") -> Plan:
    """The plan that a YAML text holds; file names in it stay as they are."""
    document = parse_document(text, where)
    if "task" in document.data and "corpus" not in document.data:
        cure = "gptft train --task takes it; a plan names a corpus."
        raise UsageError("this is the recipe of a task, not a plan", where=where, cure=cure)
    return validate(Plan, document.data, document.lines, where)


def is_plan(text: str) -> bool:
    """True for a plan's text, False for a recipe's."""
    return "corpus" in parse_document(text, "").data


def dump_plan(plan: Plan) -> str:
    """The plan as YAML with every value written out; it loads back equal."""
    return write_document(plan.model_dump())


def shipped_plans() -> dict[str, Path]:
    """The plans that come with the package, by name."""
    inside = Path(__file__).parents[1] / "recipes"
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted((folder / "pretrain").glob("*.yaml"))}


def _find_plan(name: str | Path) -> Path:
    known = shipped_plans()
    if str(name) in known:
        return known[str(name)]
    path = Path(name)
    if path.is_file():
        return path
    if str(name) and path.is_dir():
        cure = "Name a YAML file. gptft resume goes on with a run, --from FOLDER with its base."
        raise UsageError(f"{name} is a folder", cure=cure)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise UsageError(f"no plan file {name}", cure="Check the path.")
    raise UsageError(
        f"unknown plan {str(name)!r}",
        cure=f"{suggest(str(name), known)} A plan of your own is named with its .yaml.",
    )


def _place_files(plan: Plan, folder: Path) -> Plan:
    """Files and folders that the plan names, as they lie from the plan."""
    corpus = plan.corpus.model_copy(update=_place_corpus(plan.corpus, folder))
    tokenizer = {"path": _place(plan.tokenizer.path, folder)} if plan.tokenizer.path else {}
    changes = {
        "corpus": corpus,
        "tokenizer": plan.tokenizer.model_copy(update=tokenizer),
        "base": _place(plan.base, folder),
    }
    # What is not said stays unsaid, so that flags are put beside what the file says alone.
    return plan.model_copy(update={k: v for k, v in changes.items() if k in plan.model_fields_set})


def _place_corpus(part: CorpusConfig, folder: Path) -> dict[str, Any]:
    """Splits of a data set stay names; texts and the shards lie beside the plan."""
    placed: dict[str, Any] = {"path": _place(part.path, folder)}
    if part.path is None:
        texts = {name: getattr(part, name) for name in ("train", "evaluate")}
        placed = {
            name: tuple(str(folder / expanduser(path)) for path in at) for name, at in texts.items()
        }
    if part.shards is not None:
        placed["shards"] = str(folder / expanduser(part.shards))
    return {name: value for name, value in placed.items() if name in part.model_fields_set}


def _place(path: str | None, folder: Path) -> str | None:
    """`openai-community/gpt2` is a hub id unless such a folder lies beside the plan."""
    if path is None:
        return None
    whole = folder / expanduser(path)
    return str(whole) if path.startswith((".", "~")) or whole.is_dir() else path
