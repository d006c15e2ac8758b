"""Hostile inputs that were found by the fuzzer, and a few bytes at random, through its targets."""

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import FINDS, TARGETS

FILES = sorted(path for path in FINDS.glob("*/*") if path.is_file())


def assert_harmless(name: str, data: bytes) -> None:
    """A target asserts what must hold for any bytes whatever, and fails where it does not."""
    TARGETS[name](data)


@pytest.mark.parametrize("path", FILES, ids=[f"{p.parent.name}/{p.name}" for p in FILES])
def test_what_was_found_stays_harmless(path: Path) -> None:
    assert_harmless(path.parent.name, path.read_bytes())


def test_every_find_has_a_target() -> None:
    assert {path.parent.name for path in FILES} <= TARGETS.keys()
    assert len(FILES) >= 30
    assert all(path.stat().st_size <= 4096 for path in FILES)


@pytest.mark.parametrize("name", TARGETS)
def test_bytes_changed_at_random_break_nothing(name: str) -> None:
    """Whoever has no fuzzer still tries some: finds with one byte changed, cut or doubled."""
    draw = random.Random(name)
    known = [path.read_bytes() for path in FILES if path.parent.name == name] or [b"\0"]
    for _ in range(60):
        data = bytearray(draw.choice(known))
        at = draw.randrange(len(data) + 1)
        match draw.randrange(3):
            case 0:
                data[at:at] = draw.randbytes(3)
            case 1:
                del data[at:]
            case _:
                data[at : at + 1] = data[at : at + 9] * 2
        assert_harmless(name, bytes(data))
