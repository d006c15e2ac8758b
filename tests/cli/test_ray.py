"""The example with Ray Data in docs/prediction.md, on two workers of this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import finetune
from finetune.data import write_rows
from tests.conftest import ROOT
from tests.support import jobs

PAGE = (ROOT / "docs" / "prediction.md").read_text(encoding="utf-8")
# The workers take one CPU each; reading and writing need others.
START = "import ray\nray.init(num_cpus=4, object_store_memory=2**27, include_dashboard=False)\n"


@pytest.mark.slow
def test_two_workers_label_what_one_process_labels(bases, tmp_path):
    pytest.importorskip("ray")
    from pyarrow import parquet

    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path, epochs=1)
    run = jobs.train(recipe, tmp_path / "runs" / "rte")
    columns = ["premise", "hypothesis"]
    rows = [{name: row[name] for name in columns} for row in jobs.rows("entailment", 60, 3)]
    (tmp_path / "parts").mkdir()
    for number in range(3):
        with write_rows(tmp_path / "parts" / f"{number}.parquet", columns) as sink:
            for row in rows[20 * number : 20 * number + 20]:
                sink.write(row)
    [code] = [text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "ray" in text]
    Path(tmp_path, "label.py").write_text(START + code.replace("batch_size=1024", "batch_size=8"))
    environment = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "label.py"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(tmp_path / "labelled").to_pylist()
    found = {(row["premise"], row["hypothesis"]): row["label"] for row in table}
    predictions = finetune.load(run).predict(rows)
    expected = {
        (row["premise"], row["hypothesis"]): prediction.label
        for row, prediction in zip(rows, predictions, strict=True)
    }
    assert len(table) == len(rows)
    assert found == expected
