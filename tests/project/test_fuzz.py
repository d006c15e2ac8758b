"""Fuzz targets with saved inputs and with random mutations of them."""

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import FINDS, TARGETS

FILES = sorted(path for path in FINDS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", FILES, ids=[f"{p.parent.name}/{p.name}" for p in FILES])
def test_saved_inputs_pass(path: Path):
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_pass(name: str):
    generator = random.Random(name)
    saved = [path.read_bytes() for path in FILES if path.parent.name == name] or [b"\0"]
    for _ in range(60):
        data = bytearray(generator.choice(saved))
        position = generator.randrange(len(data) + 1)
        match generator.randrange(3):
            case 0:
                data[position:position] = generator.randbytes(3)
            case 1:
                del data[position:]
            case _:
                data[position : position + 1] = data[position : position + 9] * 2
        TARGETS[name](bytes(data))
