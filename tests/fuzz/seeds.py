"""Seeds of the fuzzer: small valid files of every kind."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import torch
from pyarrow import parquet
from safetensors.torch import save

from finetune.recipe.loading import shipped_recipes

ROW = {"a": "one, two", "b": 'say "so"', "c": None, "label": 1}
RACE = {"id": "1", "article": "Once.", "questions": ["Why?"], "options": [["a", "b"]]}
TEXTS = {
    "csv": b'\xef\xbb\xbfa,b,c\r\n"1, ""x""",2,3\n4,"5\n6",7\n',
    "tsv": b'a\tb\tc\n1\t"2\t3\r\n\n4\t5\t6',
    "jsonl": json.dumps(ROW).encode() + b'\n\n{"a": {"b": [1, 2.5e3, "\\u00e9\\ud83d\\ude00"]}}\n',
    "json": json.dumps([ROW, {"deep": [[{"x": "}]"}]]}], indent=1).encode(),
    "race": json.dumps({**RACE, "answers": ["A"]}).encode(),
}


def build_seeds(name: str) -> Iterator[bytes]:
    """The seeds of a target."""
    match name:
        case "rows":
            for first in range(0, 32, 8):
                yield from (bytes([first + k]) + text for k, text in enumerate(TEXTS.values()))
        case "parquet":
            for column in (["x", None], [{"b": ["x"]}], pyarrow.array(["u"]).dictionary_encode()):
                stream = io.BytesIO()
                parquet.write_table(pyarrow.table({"a": column}), stream)
                yield stream.getvalue()
        case "tensors":
            yield save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)})
            yield save({"a": torch.ones(1)}, {"b": "a"})
        case "recipe":
            yield from (Path(path).read_bytes()[:1500] for path in shipped_recipes().values())
        case "overrides":
            yield b"\x003\n\x013e-5\n\x04{0: no, 1: yes}\n\x06[a, b]\n\x09{rank: 8}"
        case "encoder":
            for first in range(8):
                yield bytes([first, 9, 20]) + "1\none two three\nfour é \U0001f600\n4".encode()
