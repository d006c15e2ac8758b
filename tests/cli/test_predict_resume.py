"""An interrupted `gptft predict` goes on where it was; folders of files are shared and resumed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.cli import main, output_rows
from finetune.data import read_rows
from finetune.evaluation import evaluate
from finetune.evaluation.predictor import Predictor
from finetune.recipe.loading import load_recipe
from tests.support import jobs, processes

CHUNK_ROWS = 8


@pytest.fixture(scope="module")
def run(bases, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = jobs.recipe("entailment", bases("gpt2"), folder, epochs=1)
    return jobs.train(recipe, folder / "run")


@pytest.fixture(autouse=True)
def small_windows(tmp_path, monkeypatch):
    """Few rows are written at once, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "CHUNK_ROWS", CHUNK_ROWS)


def write(path: str, count: int, seed: int = 3) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return jobs.write_rows(Path(path), jobs.rows("entailment", count, seed))


def predict(*words: object) -> int:
    return main(["predict", *map(str, words), "--device", "cpu"])


@pytest.fixture
def interrupt(monkeypatch):
    """Makes the n-th window of predictions, from 1, end with Ctrl-C; 0 for none."""
    stream, state = Predictor.stream, {"left": 0, "rows": 0}

    def interrupted(self, examples, progress):
        state["left"] -= 1
        examples = list(examples)
        if state["left"] == 0:
            raise KeyboardInterrupt
        state["rows"] += len(examples)
        yield from stream(self, examples, progress)

    monkeypatch.setattr(Predictor, "stream", interrupted)

    def set_window(number: int) -> dict[str, int]:
        state.update(left=number, rows=0)
        return state

    return set_window


@pytest.mark.parametrize("ending", ["csv", "jsonl.gz", "parquet"])
def test_a_resumed_file_has_the_same_bytes(run, ending, interrupt, capsys):
    write("rows.jsonl", 30)
    assert predict(run, "rows.jsonl", "-o", f"whole.{ending}") == 0
    interrupt(3)
    assert predict(run, "rows.jsonl", "-o", f"cut.{ending}") == 130
    assert f"cut.{ending}.part" in capsys.readouterr().err
    counted = interrupt(0)
    assert predict(run, "rows.jsonl", "-o", f"cut.{ending}") == 2
    assert "holds 16 rows" in capsys.readouterr().err
    assert predict(run, "rows.jsonl", "-o", f"cut.{ending}", "--resume") == 0
    assert counted["rows"] == 30 - 2 * CHUNK_ROWS
    assert Path(f"cut.{ending}").read_bytes() == Path(f"whole.{ending}").read_bytes()
    assert sorted(os.listdir()) == [f"cut.{ending}", "rows.jsonl", f"whole.{ending}"]
    assert predict(run, "rows.jsonl", "-o", f"cut.{ending}", "--resume") == 0
    assert "1 output complete already" in capsys.readouterr().err


def test_a_changed_run_or_input_is_refused_and_a_corrected_row_is_not(
    run, interrupt, capsys, tmp_path
):
    write("rows.jsonl", 30)
    shutil.copytree(run, tmp_path / "copy")
    interrupt(3)
    assert predict("copy", "rows.jsonl", "-o", "out.csv") == 130
    interrupt(0)
    lines = Path("rows.jsonl").read_text().splitlines(keepends=True)
    Path("rows.jsonl").write_text("".join([lines[1], *lines[1:]]))
    capsys.readouterr()
    assert predict("copy", "rows.jsonl", "-o", "out.csv", "--resume") == 2
    message = "error: out.csv.part: cannot go on: the input changed since this was begun"
    assert capsys.readouterr().err.startswith(message)
    Path("rows.jsonl").write_text("".join(lines))
    Path("copy/recipe.yaml").write_text(Path("copy/recipe.yaml").read_text() + "# other\n")
    assert predict("copy", "rows.jsonl", "-o", "out.csv", "--resume") == 2
    assert "cannot go on: the run changed" in capsys.readouterr().err
    # Rows that were not reached may change: the output is that of the new file.
    shutil.copy(run / "recipe.yaml", "copy/recipe.yaml")
    Path("rows.jsonl").write_text("".join([*lines[:29], lines[0]]))
    assert predict("copy", "rows.jsonl", "-o", "out.csv", "--resume") == 0
    assert predict(run, "rows.jsonl", "-o", "whole.csv") == 0
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_a_folder_of_files_is_labelled_file_by_file_and_resumed(run, interrupt, capsys):
    for number, name in enumerate(["parts/a-1.jsonl", "parts/a-2.jsonl", "parts/sub/a-10.jsonl"]):
        write(name, 20, number)
    assert predict(run, "parts", "-o", "whole/") == 0
    assert sorted(p.name for p in Path("whole").rglob("*.jsonl")) == [
        "a-1.jsonl", "a-10.jsonl", "a-2.jsonl",
    ]  # fmt: skip
    interrupt(5)
    assert predict(run, "parts", "-o", "out/") == 130
    assert Path("out/a-1.jsonl").is_file()
    assert Path("out/a-2.jsonl.part").is_file()
    counted = interrupt(0)
    assert predict(run, "parts", "-o", "out/", "--resume") == 0
    assert counted["rows"] == 60 - 20 - CHUNK_ROWS
    shutil.copytree(run, "other")
    Path("other/recipe.yaml").write_text(Path("other/recipe.yaml").read_text() + "# other\n")
    capsys.readouterr()
    assert predict("other", "parts", "-o", "out/", "--resume") == 2
    assert "error: out: cannot go on: the run changed" in capsys.readouterr().err
    for file in Path("whole").rglob("*.jsonl"):
        assert Path("out", file.relative_to("whole")).read_bytes() == file.read_bytes()
    capsys.readouterr()
    write("parts/a-1.jsonl", 3)
    assert predict(run, "parts", "-o", "out/", "--resume") == 2
    assert "a-1.jsonl changed since this was made" in capsys.readouterr().err


def test_shards_are_a_partition_and_a_broken_file_costs_only_itself(run, capsys):
    for number in range(1, 5):
        write(f"parts/{number}.jsonl", 3, number)
    Path("parts/3.parquet").write_bytes(b"broken")
    write("parts/5.jsonl", 3, 5)
    assert predict(run, "parts", "-o", "out", "--shard", "1/2") == 0
    done = {"1.jsonl", "3.jsonl", "4.jsonl"}
    assert set(os.listdir("out")) == {".gptft-predict.json", *done}
    assert predict(run, "parts", "-o", "out/", "--shard", "2/2") == 2
    error = capsys.readouterr().err
    assert "failed: parts/3.parquet: not a complete Parquet file" in error
    assert "1 file of 3 failed" in error
    assert set(os.listdir("out")) == {".gptft-predict.json", "2.jsonl", "5.jsonl", *done}


def test_a_split_is_labelled_like_its_file(run, capsys):
    file = load_recipe(run / "recipe.yaml").data.evaluate
    assert predict(run, "--split", "evaluate", "-o", "split.csv") == 0
    assert f"reading {file}" in capsys.readouterr().err
    assert predict(run, file, "-o", "file.csv") == 0
    assert Path("split.csv").read_bytes() == Path("file.csv").read_bytes()
    assert predict(run, file, "-o", "first.csv", "--limit", "3") == 0
    first, whole = ([row for _, row in read_rows(f"{name}.csv")] for name in ("first", "file"))
    assert [row["premise"] for row in first] == [row["premise"] for row in whole[:3]]
    assert predict(run) == 2
    assert "data.predict: the recipe has no data.predict" in capsys.readouterr().err


def test_a_column_that_comes_late_costs_only_its_row(run, monkeypatch, capsys):
    monkeypatch.setattr(output_rows, "_LOOK_AHEAD", 5)
    rows = jobs.rows("entailment", 9)
    rows[7]["new"] = "x"
    jobs.write_rows(Path("rows.jsonl"), rows)
    assert predict(run, "rows.jsonl", "-o", "out.csv") == 0
    assert "1 row without a label" in capsys.readouterr().err
    found = [row for _, row in read_rows("out.csv")]
    assert [n for n, row in enumerate(found) if row["error"]] == [7]
    assert found[7]["error"] == "line 8: the column 'new' is in none of the first 5 rows"
    assert found[7]["premise"] == rows[7]["premise"]
    assert predict(run, "rows.jsonl", "-o", "out.csv", "--on-bad-row", "stop") == 2
    assert "line 8: the column 'new' is in none" in capsys.readouterr().err


def test_outputs_inside_the_folder_of_inputs_are_no_inputs(run):
    for number in (1, 2):
        write(f"parts/{number}.jsonl", 3, number)
    for _ in range(2):
        assert predict(run, "parts", "-o", "parts/out/") == 0
    assert sorted(os.listdir("parts/out")) == [".gptft-predict.json", "1.jsonl", "2.jsonl"]


def test_several_files_go_into_one_file_that_is_named(run):
    write("parts/1.jsonl", 3, 1)
    write("parts/2.jsonl", 4, 2)
    assert predict(run, "parts/1.jsonl", "parts/2.jsonl", "-o", "all.csv") == 0
    assert len(list(read_rows("all.csv"))) == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rows.jsonl", "-o", "out.csv", "--shard", "1/2"], "--shard deals files"),
        (["rows.jsonl", "-o", "out.csv", "--resume", "--overwrite"], "exclude each other"),
        (["rows.jsonl", "rows.jsonl", "-o", "out/", "--shard", "0/2"], "two inputs have the same"),
        (["parts", "-o", "out/", "--shard", "0/2"], "invalid shard '0/2'"),
        (["rows.jsonl", "-o", "rows.jsonl"], "is also the input file"),
        (["parts", "-o", "parts/"], "is also the input file"),
    ],
)
def test_wrong_use(run, words, message, capsys):
    write("rows.jsonl", 3)
    write("parts/1.jsonl", 3)
    write("parts/2.jsonl", 3)
    assert predict(run, *words) == 2
    assert message in capsys.readouterr().err


def predict_twice(run: Path, folder: Path, name: str) -> int:
    """Labels a folder and a file."""
    os.chdir(folder)
    evaluate.CHUNK_ROWS = CHUNK_ROWS
    codes = predict(run, "parts", "-o", f"{name}/"), predict(run, "rows.jsonl", "-o", f"{name}.csv")
    return max(codes)


def test_several_processes_write_the_same(run, tmp_path):
    for number in range(1, 4):
        write(f"parts/{number}.jsonl", 10, number)
    write("rows.jsonl", 30)
    assert predict_twice(run, tmp_path, "whole") == 0
    log = tmp_path.with_suffix(".log")
    processes.run_processes(2, predict_twice, run, tmp_path, "out", output=log)
    files = [*Path("whole").rglob("*.jsonl"), Path("whole.csv")]
    assert len(files) == 4
    for file in files:
        other = Path(str(file).replace("whole", "out"))
        assert other.read_bytes() == file.read_bytes()


IMPORTS = """
import sys
from transformers import AutoTokenizer, GPT2LMHeadModel
theirs = set(sys.modules)
from finetune.cli import main
assert main(["predict", *sys.argv[1:], "--device", "cpu"]) == 0
added = {name.split(".")[0] for name in sys.modules.keys() - theirs}
print(sorted(added & {"accelerate", "datasets", "matplotlib", "pandas", "peft", "pyarrow", "scipy",
                      "sklearn", "torchvision"}))
"""


def test_prediction_imports_nothing_slow_that_transformers_does_not_need(run):
    write("rows.jsonl", 3)
    words = [sys.executable, "-c", IMPORTS, str(run), "rows.jsonl", "-o", "out.csv"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
