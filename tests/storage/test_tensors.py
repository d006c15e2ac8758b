"""Tensors on disk: bit for bit, whatever their type, shape and memory."""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune.storage import tensors as tensor_file
from finetune.storage.tensors import _DTYPES, find_same, read_tensors, write_tensors
from task_formats import UsageError

DTYPES = list(_DTYPES)


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    fresh = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    return tensor.dtype, tuple(tensor.shape), bytes(fresh.reshape(-1).view(torch.uint8).numpy())


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    with open(path, "wb") as file:
        size, digest = write_tensors(file, *find_same(tensors))
    content = path.read_bytes()
    assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())


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
    write(path, tensors)
    found = {name: bits(tensor) for name, tensor in tensors.items()}
    assert {name: bits(tensor) for name, tensor in read_tensors(path).items()} == found
    # The library agrees, about types that it knows by the same name.
    assert {name: bits(tensor) for name, tensor in load_file(path).items()} == found


def test_written_bytes_leave_for_the_disk_stretch_by_stretch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stretches, push = [], tensor_file.flush_range

    def watch(file: BinaryIO, start: int, stop: int) -> None:
        push(file, start, stop)
        stretches.append((start, stop))
        assert os.fstat(file.fileno()).st_size == stop

    monkeypatch.setattr(tensor_file, "STRETCH", 1000)
    monkeypatch.setattr(tensor_file, "flush_range", watch)
    write(tmp_path / "many", {f"{n:02}": torch.full((100,), n) for n in range(20)})
    assert [start for start, _ in stretches] == [0, *(stop for _, stop in stretches[:-1])]
    assert all(1000 <= stop - start < 2000 for start, stop in stretches)
    assert (tmp_path / "many").stat().st_size - stretches[-1][1] < 1000
    assert read_tensors(tmp_path / "many")["07"].tolist() == [7] * 100


def test_library_writes_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6).reshape(2, 3), "a": torch.ones(3), "c": torch.tensor(1.5)}
    write(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs")
    theirs = read_tensors(tmp_path / "theirs")
    assert {name: bits(tensor) for name, tensor in theirs.items()} == {
        name: bits(tensor) for name, tensor in tensors.items()
    }
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    table = torch.randn(100, 10)
    weight = torch.nn.Parameter(table)
    write(tmp_path / "tied", {"embedding": weight, "output": weight, "view": table.view(100, 10)})
    assert (tmp_path / "tied").stat().st_size < 1.5 * table.nbytes
    read = read_tensors(tmp_path / "tied")
    assert set(read) == {"embedding", "output", "view"}
    assert read["output"] is read["embedding"] is read["view"]
    assert bits(read["output"]) == bits(table)


def test_tensors_that_overlap_are_stored_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": base, "row": base[1], "first": base[:1], "turned": base.T}
    tensors["spread"] = base[0].expand(5, 4)
    write(tmp_path / "file", tensors)
    read = read_tensors(tmp_path / "file")
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        read[name].zero_()  # memory of its own: the others do not change


def test_file_may_be_deleted_while_its_tensors_are_in_use(tmp_path: Path) -> None:
    write(tmp_path / "file", {"a": torch.ones(1000)})
    read = read_tensors(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"")
    assert torch.equal(read["a"], torch.ones(1000))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(2).to_sparse(),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tensor: Tensor) -> None:
    with pytest.raises(TypeError, match="'weight'"):
        find_same({"weight": tensor})


def test_reserved_name_is_refused() -> None:
    with pytest.raises(TypeError, match="__metadata__"):
        find_same({"__metadata__": torch.ones(1)})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\x02" + bytes(7) + b"{}x",
        b"\x02" + bytes(7) + b"[]",
        bytes(100),
        (50).to_bytes(8, "little") + b'{"__metadata__":{"tied":"none"}}'.ljust(50),
        (80).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'.ljust(80)
        + bytes(4),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UsageError, match="no safetensors file"):
        read_tensors(tmp_path / "file")
