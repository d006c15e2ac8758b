"""Tensors on disk: bit for bit, and every other file is refused."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetune.storage.tensors import read_tensors, save_tensors
from task_formats import UsageError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    fresh = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    return tensor.dtype, tuple(tensor.shape), bytes(fresh.reshape(-1).view(torch.uint8).numpy())


@st.composite
def any_tensor(draw: st.DrawFn) -> Tensor:
    """Random bits (NaNs with payloads too) of any type and shape, contiguous or not."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = torch.Size(shape).numel() * dtype.itemsize
    data = draw(st.binary(min_size=count, max_size=count))
    flat = torch.tensor(list(data), dtype=torch.uint8)
    if dtype == torch.bool:
        flat = flat % 2
    tensor = flat.view(dtype).reshape(shape)
    if shape and draw(st.booleans()):
        tensor = tensor.transpose(0, -1)
    return tensor[::2] if shape and draw(st.booleans()) else tensor


@given(tensors=st.dictionaries(st.text(max_size=6), any_tensor(), max_size=5))
def test_tensors_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]
) -> None:
    path = tmp_path_factory.getbasetemp() / "property.safetensors"
    save_tensors(path, tensors)
    found = {name: bits(tensor) for name, tensor in read_tensors(path).items()}
    assert found == {name: bits(tensor) for name, tensor in tensors.items()}


def test_the_file_may_be_deleted_while_its_tensors_are_in_use(tmp_path: Path) -> None:
    save_tensors(tmp_path / "file", {"a": torch.ones(1000)})
    read = read_tensors(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"")
    assert torch.equal(read["a"], torch.ones(1000))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\x02" + bytes(7) + b"[]",
        (80).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'.ljust(80)
        + bytes(4),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UsageError, match="not a safetensors file"):
        read_tensors(tmp_path / "file")
