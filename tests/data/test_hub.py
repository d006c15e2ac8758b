"""Data sets through `datasets`: saved copies, the cache, and an unreachable hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from finetune.data import open_rows
from finetune.data.hub import open_hub
from finetune.recipe.schema import DataConfig
from task_formats import UsageError
from tests.conftest import ROOT


def rows(count: int) -> list[dict[str, Any]]:
    return [{"sentence": f"text {k}", "label": k % 2} for k in range(count)]


def table(count: int) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows(count))


def test_a_saved_collection(tmp_path: Path) -> None:
    saved = datasets.DatasetDict({"train": table(2500), "validation": table(3)})
    saved.save_to_disk(str(tmp_path / "saved"))
    data = DataConfig(path=str(tmp_path / "saved"))
    found = open_rows(data, "train")
    assert [row for _, row in found] == rows(2500)
    assert str([location for location, _ in found][2400]).endswith("saved, train, row 2401")
    assert [row for _, row in open_rows(data, "validation")] == rows(3)
    with pytest.raises(UsageError, match="no split 'test'"):
        open_rows(data, "test")
    below = DataConfig(path=str(tmp_path), name="saved")
    assert [row for _, row in open_rows(below, "validation")] == rows(3)


def test_a_damaged_copy(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UsageError, match="the saved data set cannot be read"):
        open_rows(DataConfig(path=str(tmp_path)), "train")


def test_the_fingerprint_is_of_the_rows_and_not_of_their_files(tmp_path: Path) -> None:
    prints = []
    for count, shards in ((2500, 1), (2500, 3), (2499, 1)):
        folder = tmp_path / f"{count}-{shards}"
        table(count).save_to_disk(str(folder), num_shards=shards)
        prints.append(open_rows(DataConfig(path=str(folder)), "train").fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_what_the_hubs_loader_gives(tmp_path: Path) -> None:
    """`load_dataset` itself, on a folder laid out as the hub lays out its own."""
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows(5)), path)
    found = open_hub(str(tmp_path), None, "train", None)
    assert [row for _, row in found] == rows(5)
    assert found.origin == f"{tmp_path}, train"
    with pytest.raises(UsageError, match="the data set cannot be loaded: Unknown split"):
        open_hub(str(tmp_path), None, "test", None)
    with pytest.raises(UsageError, match="BuilderConfig 'rte' not found"):
        open_hub(str(tmp_path), "rte", "train", None)


def fill_cache(folder: Path, commit: str) -> None:
    """A hub's data set of one configuration, as `datasets` leaves it in its cache."""
    source = folder / "source.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows(3)), source)
    made = datasets.load_dataset(
        "parquet", data_files={"train": str(source)}, split="train", cache_dir=str(folder / "made")
    )
    arrow = Path(made.cache_files[0]["filename"])
    entry = folder / "cache" / "nyu-mll___glue" / "rte" / "0.0.0" / commit
    entry.mkdir(parents=True)
    shutil.copy(arrow, entry / "glue-train.arrow")
    facts = json.loads((arrow.parent / "dataset_info.json").read_text())
    (entry / "dataset_info.json").write_text(json.dumps({**facts, "config_name": "rte"}))


def test_the_cache_serves_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_cache(tmp_path, "a" * 40)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for revision in (None, "a" * 40, "main"):
        data = DataConfig(path="nyu-mll/glue", name="rte", revision=revision)
        assert [row for _, row in open_rows(data, "train")] == rows(3)
    with pytest.raises(UsageError, match="the cache holds another revision than bbbb"):
        open_rows(DataConfig(path="nyu-mll/glue", name="rte", revision="b" * 40), "train")


LOAD = """
import json
from finetune.data import open_rows
from finetune.models.pretrained import load_task_tokens
from finetune.recipe.schema import BaseConfig, DataConfig
from task_formats import UsageError

data, base = DataConfig(path="nyu-mll/glue", name="rte"), BaseConfig(path="gpt2")
for load in (lambda: open_rows(data, "train"), lambda: load_task_tokens(base)):
    try:
        load()
    except UsageError as error:
        print(json.dumps(str(error)))
"""


def test_an_unreachable_hub_fails_within_seconds(tmp_path: Path) -> None:
    """The libraries are not in offline mode; the endpoint refuses connections."""
    endpoint = "http://127.0.0.1:9"
    settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
    # One retry of huggingface_hub would be logged; all of them last 23 seconds.
    command, environment = [sys.executable, "-c", LOAD], {**os.environ, **settings}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    data_set, base = map(json.loads, done.stdout.splitlines())
    assert "nyu-mll/glue (rte), train: there is no folder 'nyu-mll/glue' here" in data_set
    assert "--data DIR" in data_set
    assert "base.path: cannot load the base 'gpt2'" in base
    assert "Without a network" in base
    assert "Retrying" not in done.stderr
