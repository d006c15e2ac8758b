"""One file of named tensors in the safetensors format, written in a stream."""

import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.storage.files import BLOCK, flush_range
from task_formats import UsageError

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_METADATA = "__metadata__"
STRETCH = 64 * 2**20
"""Bytes after which what was written is pushed out to the disk."""

Same = dict[str, str]
"""Name of a tensor to the name under which its numbers are stored (tied weights)."""


def find_same(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Same]:
    """The tensors without those that are another one's memory seen alike, and what these are.

    Tensors that merely overlap (slices of one another) stay, each with all of its numbers.
    TypeError for what the format cannot hold: sparse, meta or complex tensors.
    """
    first: dict[tuple[object, ...], str] = {}
    distinct, same = {}, {}
    for name, tensor in tensors.items():
        _require_writable(name, tensor)
        view = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        original = first.setdefault(view, name)
        if original == name or not tensor.numel():
            distinct[name] = tensor
        else:
            same[name] = original
    return distinct, same


def _require_writable(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
        raise TypeError(f"tensor {name!r}: {tensor.dtype}, {tensor.layout} on {tensor.device}")
    if name == _METADATA:
        raise TypeError(f"{name!r} is no name of a tensor")


def write_tensors(
    file: BinaryIO,
    tensors: Mapping[str, Tensor],
    same: Same,
    before_each: Callable[[], object] = bool,
) -> tuple[int, str]:
    """Write what `find_same` gave; returns the number of bytes and their SHA-256.

    Calls `before_each` before every piece of some megabytes: it may raise to leave it there.
    safetensors' own writer hides which OSError it met, and the hash would cost a second pass.
    """
    # Wide numbers first, so that every tensor begins at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    blocks = chain(
        [memoryview(_header({name: tensors[name] for name in order}, same))],
        (_numbers(tensors[name]) for name in order),
    )
    digest, size, pushed = hashlib.sha256(), 0, 0
    for block in blocks:
        for start in range(0, len(block), BLOCK):
            before_each()
            piece = block[start : start + BLOCK]
            digest.update(piece)
            file.write(piece)
            size += len(piece)
            if size - pushed >= STRETCH:
                flush_range(file, pushed, size)
                pushed = size
    return size, digest.hexdigest()


def _header(tensors: Mapping[str, Tensor], same: Same) -> bytes:
    header: dict[str, object] = {_METADATA: same} if same else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _numbers(tensor: Tensor) -> memoryview:
    # as_strided: a single number may have any stride, and view() minds it.
    flat = tensor.detach().cpu().contiguous().as_strided((tensor.numel(),), (1,))
    return memoryview(flat.view(torch.uint8).numpy().data)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU and in memory of their own; tied ones are one tensor.

    UsageError where it is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # Cloned: the file may be deleted while its numbers are in use.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            same: Same = file.metadata() or {}
        return tensors | {name: tensors[original] for name, original in same.items()}
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"no safetensors file: {error}", where=str(path)) from error
