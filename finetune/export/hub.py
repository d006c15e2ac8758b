"""Uploads models to the Hugging Face Hub."""

import json
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from finetune.checkpointing.model_card import (
    MODEL_CARD,
    CardContent,
    build_model_card,
    hub_id,
    without_local_paths,
)
from finetune.checkpointing.model_folder import ADAPTER, HEAD_FILE
from finetune.checkpointing.run_folder import MODEL, RECIPE, RESULT, load_run_recipe, read_result
from finetune.data.hub import is_hub_reachable
from finetune.evaluation.predictor import find_model_folder
from finetune.export.onnx import MODEL_FILE
from finetune.models.lora import ADAPTER_CONFIG
from task_formats import UsageError

_MODELS = ("config.json", ADAPTER_CONFIG, MODEL_FILE)
"""Each exported folder has one of these."""


def push(folder: Path, name: str, *, public: bool = False) -> str:
    """Uploads a finished run, or a folder that `gptft export` wrote, in one commit.

    Of a run the content of `model/` is uploaded, its result, and the recipe without paths of this
    machine; `finetune.load` reads a download of it. Of a run of `gptft pretrain` only the model is
    uploaded, which transformers loads.

    Args:
        folder: The run folder or the exported folder.
        name: Repository on the Hub, such as me/rte; it is created where missing.
        public: Whether a new repository is visible to everybody.

    Returns:
        The address of the repository.

    Raises:
        UsageError: The folder is neither, or the Hub is unreachable, refuses, or breaks off.
    """
    model = folder / MODEL
    if _is_exported(folder):
        operations = list(_exported_files(folder))
    elif _is_exported(model) and not (model / HEAD_FILE).exists():  # gptft pretrain
        operations = list(_exported_files(model))
    else:
        operations = list(_run_files(folder))
    if not is_hub_reachable():
        what = "the Hub is unreachable, or offline mode (HF_HUB_OFFLINE) is on"
        cure = "Nothing was uploaded. Check the network, or unset HF_HUB_OFFLINE."
        raise UsageError(what, where=constants.ENDPOINT, cure=cure)
    api = HfApi(endpoint=constants.ENDPOINT, library_name="gptft")
    try:
        repository = api.create_repo(name, private=not public, exist_ok=True)
        api.create_commit(repository.repo_id, operations, commit_message="Upload by gptft")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        cure = "Check the name, and log in with `hf auth login` or HF_TOKEN (permission to write)."
        raise UsageError(f"the Hub refused: {reason}", where=name, cure=cure) from error
    except Exception as error:  # The types depend on the HTTP library of huggingface_hub.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        cure = "The Hub shows an upload only when it is complete. Run the command again."
        raise UsageError(f"the upload broke off: {reason}", where=name, cure=cure) from error
    return str(repository)


def _is_exported(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    # Any project has a README.md; this must not upload one.
    is_model = "tokenizer_config.json" in names and not names.isdisjoint(_MODELS)
    return is_model and MODEL_CARD in names and RECIPE not in names


def _exported_files(folder: Path) -> Iterator[CommitOperationAdd]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield CommitOperationAdd(name.as_posix(), path)


def _run_files(run: Path) -> Iterator[CommitOperationAdd]:
    result, recipe = read_result(run), load_run_recipe(run, trust_remote_code=True)
    # Nothing is run here; who downloads the recipe decides for themselves.
    base = recipe.base.model_copy(update={"trust_remote_code": False})
    recipe = recipe.model_copy(update={"base": base})
    model = find_model_folder(run)
    if not (model / MODEL_CARD).is_file():
        # Older versions wrote none.
        content = CardContent(run.absolute().name, recipe, recipe.task.build(), result)
        yield CommitOperationAdd(MODEL_CARD, str(build_model_card(content)).encode())
    yield CommitOperationAdd(RECIPE, without_local_paths(recipe).to_yaml().encode())
    yield CommitOperationAdd(RESULT, run / RESULT)
    for file in _exported_files(model):
        if file.path_in_repo in (RECIPE, RESULT):
            continue  # Of a download, whose model is beside them.
        if not file.path_in_repo.startswith(f"{ADAPTER}/"):
            yield file
        elif recipe.base.quantization is None:
            continue  # They are merged into the weights.
        elif file.path_in_repo != f"{ADAPTER}/{ADAPTER_CONFIG}":
            yield file
        else:
            # It names the base as this machine has it.
            content = json.loads((model / ADAPTER / ADAPTER_CONFIG).read_bytes())
            content["base_model_name_or_path"] = hub_id(recipe.base.path)
            yield CommitOperationAdd(file.path_in_repo, json.dumps(content, indent=2).encode())
