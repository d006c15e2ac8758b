"""`gptft submit` with runs on small copies of GLUE and RACE."""

import json
import zipfile
from pathlib import Path

import pytest

import finetune
from finetune.cli import main
from finetune.recipe.loading import load_recipe
from finetune.submission import glue

ROWS = {"RTE": 4, "STS-B": 5, "MNLI-m": 3, "MNLI-mm": 4, "AX": 2}
FILES = tuple(f._replace(rows=ROWS.get(f.name, 3)) for f in glue.GLUE_FILES)
PASSAGE = {
    "article": "The cat sat on the mat.",
    "questions": ["Who sat?", "Where?"],
    "options": [["a cat", "a dog", "rain", "men"], ["a mat", "a bed", "snow", "here"]],
    "answers": ["A", "B"],
}


def write(path: Path, header: str, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines, ""]))


def pairs(number: int, *ends: str) -> list[str]:
    """Rows of an index, two sentences and one of the ends."""
    end = [f"\t{ends[n % len(ends)]}" if ends else "" for n in range(number)]
    return [f"{n}\tthe cat sat {n}\tthe dog ran {n * n}{end[n]}" for n in range(number)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bases) -> Path:
    """Small data sets in GLUE's and RACE's layouts, and runs on them; to be read only."""
    home = tmp_path_factory.mktemp("submit")
    pair, nli = "index\tsentence1\tsentence2", ("entailment", "neutral", "contradiction")
    for split in ("train", "dev"):
        write(
            home / f"glue/RTE/{split}.tsv",
            f"{pair}\tlabel",
            pairs(6, "entailment", "not_entailment"),
        )
        write(home / f"glue/STS-B/{split}.tsv", f"{pair}\tscore", pairs(6, "1.0", "4.5"))
    write(home / "glue/MNLI/train.tsv", f"{pair}\tgold_label", pairs(6, *nli))
    for genre in ("matched", "mismatched"):
        write(home / f"glue/MNLI/dev_{genre}.tsv", f"{pair}\tgold_label", pairs(6, *nli))
    write(home / "glue/RTE/test.tsv", pair, pairs(4))
    # A row without a text for one field.
    write(home / "glue/STS-B/test.tsv", pair, [*pairs(4), "4\t\tthe dog ran"])
    write(home / "glue/MNLI/test_matched.tsv", pair, pairs(3))
    write(home / "glue/MNLI/test_mismatched.tsv", pair, pairs(4))
    write(home / "glue/diagnostic/diagnostic.tsv", pair, pairs(2))
    for split in ("train", "dev", "test"):
        for level in ("middle", "high"):
            for number in range(1, 3 if level == "high" else 2):
                path = home / f"race/{split}/{level}/{number}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"id": f"{level}{number}.txt", **PASSAGE}))
    for task, data in {"rte": "glue", "stsb": "glue", "mnli": "glue", "race": "race"}.items():
        values = {"data.path": str(home / data), "base.path": str(bases("gpt2"))}
        values |= {"train.epochs": 1, "train.max_tokens": 48, "train.precision": "fp32"}
        if task == "mnli":
            values["data.extra"] = {}
        finetune.train(load_recipe(task, values), home / "runs" / task)
    return home


@pytest.fixture(autouse=True)
def small(monkeypatch, folder):
    """The row counts of the small files."""
    monkeypatch.setattr(glue, "GLUE_FILES", FILES)
    monkeypatch.chdir(folder)


def lines_of(archive: Path, name: str) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        header, *lines, last = opened.read(f"{name}.tsv").decode().split("\n")
    assert header == "index\tprediction"
    assert last == ""
    assert [line.split("\t")[0] for line in lines] == [str(n) for n in range(len(lines))]
    return [line.split("\t")[1] for line in lines]


def test_a_submission_has_the_predictions_of_its_runs(folder, tmp_path, capsys):
    archive = tmp_path / "glue.zip"
    runs = ["runs/rte", "runs/stsb", "runs/mnli"]
    assert main(["submit", *runs, "-o", str(archive)]) == 2
    assert "error: no run for CoLA, SST-2, MRPC, QNLI, QQP, WNLI" in capsys.readouterr().err
    assert not archive.exists()
    assert main(["submit", *runs, "-o", str(archive), "--fill"]) == 0
    output = capsys.readouterr().out
    for row in (
        "CoLA.tsv 3 1 for all rows: no run",
        "STS-B.tsv 5 4 rows predicted, 1 without text",
    ):
        assert row in " ".join(output.split())
    assert main(["submit", "--check", str(archive)]) == 0
    assert "is a valid submission." in capsys.readouterr().out

    def rows(path: str) -> list[dict[str, str]]:
        names = ("index", "sentence1", "sentence2")
        lines = (folder / "glue" / path).read_text().splitlines()[1:]
        return [dict(zip(names, line.split("\t"), strict=True)) for line in lines]

    def predict(run: str, path: str) -> list[str | float]:
        renamed = [
            {**row, "premise": row["sentence1"], "hypothesis": row["sentence2"]}
            for row in rows(path)
        ]
        return [p.label for p in finetune.load(folder / "runs" / run).predict(renamed)]

    assert lines_of(archive, "RTE") == predict("rte", "RTE/test.tsv")
    assert lines_of(archive, "MNLI-m") == predict("mnli", "MNLI/test_matched.tsv")
    assert lines_of(archive, "MNLI-mm") == predict("mnli", "MNLI/test_mismatched.tsv")
    assert lines_of(archive, "AX") == predict("mnli", "diagnostic/diagnostic.tsv")
    (folder / "glue/four.tsv").write_text("\n".join(["", *pairs(4)]))
    scores = [f"{min(max(float(s), 0), 5):.3f}" for s in predict("stsb", "four.tsv")]
    assert lines_of(archive, "STS-B") == [*scores, "2.700"]
    assert lines_of(archive, "WNLI") == ["0"] * 3


def test_scores_are_clipped(folder, tmp_path, monkeypatch):
    from finetune.evaluation.predictor import Predictor
    from task_formats import Prediction

    values = [-1.5, 0.0004, 7.25, 4.9996, 3.14159]

    def stream(self, examples, progress):
        for example, value in zip(examples, values, strict=False):
            yield Prediction(example.id, value, (value,))

    monkeypatch.setattr(Predictor, "stream", stream)
    words = ["submit", "runs/stsb", "-o", str(tmp_path / "glue.zip"), "--fill"]
    assert main(words) == 0
    assert lines_of(tmp_path / "glue.zip", "STS-B") == ["0.000", "0.000", "5.000", "5.000", "2.700"]


def test_another_number_of_test_rows_is_refused_before_anything_is_predicted(
    tmp_path, monkeypatch, capsys
):
    files = tuple(f._replace(rows=5) if f.name == "RTE" else f for f in FILES)
    monkeypatch.setattr(glue, "GLUE_FILES", files)
    monkeypatch.setattr("finetune.cli.commands.submit.load_predictor", None)
    (tmp_path / "only").mkdir()
    monkeypatch.setattr(glue, "GLUE_FILES", [f for f in files if f.name == "RTE"])
    assert main(["submit", "runs/rte", "-o", str(tmp_path / "glue.zip")]) == 2
    error = capsys.readouterr().err
    assert "RTE/test.tsv: 4 test rows, and GLUE's RTE has 5" in error


def test_a_broken_archive_is_reported_with_all_its_problems(tmp_path, capsys):
    glue.write_submission(tmp_path / "glue.zip", [glue.fill_file(file, "") for file in FILES[:-1]])
    assert main(["submit", "--check", str(tmp_path / "glue.zip")]) == 2
    output = capsys.readouterr()
    assert "AX.tsv is missing" in output.err
    assert "CoLA.tsv" in output.out


def test_race_is_summarized_by_level(folder, capsys):
    assert main(["submit", "runs/race"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    scores = {words[0]: words[1:] for words in lines if len(words) == 3}
    predictor = finetune.load(folder / "runs/race")
    expected = {}
    for level, rows in (("middle", 2), ("high", 4)):
        data = predictor.recipe.data.model_copy(update={"name": level})
        expected[level] = predictor.evaluate("test", data)["accuracy"]
        assert scores[level] == [str(rows), f"{expected[level]:.4f}"]
    both = (2 * expected["middle"] + 4 * expected["high"]) / 6
    assert scores["all"] == ["6", f"{both:.4f}"]
    assert f"{predictor.evaluate('test')['accuracy']:.4f}" == f"{both:.4f}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "no run"),
        ("runs/rte", "the archive has no name"),
        ("runs/rte runs/../runs/rte -o x.zip --fill", "are both runs of rte"),
        ("runs/race -o x.zip", "--output is only for runs on GLUE"),
        ("runs/rte --check x.zip", "RUN and --check exclude each other"),
        ("runs/rte -o no/x.zip --fill", "there is no folder 'no'"),
    ],
)
def test_wrong_use(words, message, capsys):
    assert main(["submit", *words.split()]) == 2
    assert message in capsys.readouterr().err
