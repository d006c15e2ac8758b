"""Further files as people have them: tables, labels and choices that readers stumble over."""

import json
import unicodedata

import pytest

from finetune.cli import main
from finetune.data import open_file, open_rows, read_rows
from finetune.recipe.loading import load_recipe


def text(n):
    return f"it was the film number {n}"


@pytest.fixture
def new(tmp_path, capsys):
    """Runs `gptft new` on a content; returns its output, and the recipe or None."""

    def run(content, name="rows.csv", *options):
        path, target = tmp_path / name, tmp_path / "rows.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        target.unlink(missing_ok=True)
        status = main(["new", str(path), "-o", str(target), *options])
        captured = capsys.readouterr()
        out = " ".join((captured.out + captured.err).split())
        return out, load_recipe(target) if status == 0 else None

    return run


def table(rows, header="text,label"):
    return f"{header}\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)


PLAIN = [(text(n), "ab"[n % 2]) for n in range(20)]


def labels(recipe):
    return recipe.task.build().labels.names


def examples(recipe):
    task, data = recipe.task.build(), recipe.data
    return [task.example(row, "x") for _, row in open_rows(data, data.train)]


# -- tables ----------------------------------------------------------------------------------------


def test_a_first_line_that_names_the_delimiter(new, tmp_path):
    """Excel writes and reads it."""
    content = "sep=;\n" + table(PLAIN).replace(",", ";")
    out, recipe = new(content)
    assert "Found semicolons between the columns." in out
    assert len(examples(recipe)) == 20
    assert str(next(iter(read_rows(tmp_path / "rows.csv")))[0]).endswith("line 3")


def test_delimiters_at_the_end_of_rows_only(new):
    _, recipe = new("text,label\n" + "".join(f"{a},{b},,\n" for a, b in PLAIN))
    assert len(examples(recipe)) == 20


def test_everything_in_quotes_with_a_byte_order_mark_and_windows_line_ends(new):
    lines = ["text;label", *(f"{a};{b}" for a, b in PLAIN)]
    quoted = "\r\n".join(";".join(f'"{x}"' for x in line.split(";")) for line in lines)
    _, recipe = new(quoted.encode("utf-8-sig"))
    assert [example.label for example in examples(recipe)] == [0, 1] * 10


def test_a_text_over_several_lines_between_tabs_and_semicolons(new):
    rows = "".join(f'"{a}\nreally; I mean it"\t{b}\n' for a, b in PLAIN)
    _, recipe = new("text\tlabel\n" + rows, "rows.tsv")
    assert examples(recipe)[3].fields["text"] == f"{text(3)}\nreally; I mean it"
    _, recipe = new(("text\tlabel\n" + rows).replace("; I", ", I").replace("\t", ";"))
    assert examples(recipe)[3].fields["text"] == f"{text(3)}\nreally, I mean it"


def test_one_column_of_texts_is_not_split(tmp_path):
    for name in ("rows.csv", "rows.tsv"):
        path = tmp_path / name
        path.write_text("text\n" + "".join(f"good; number {n} | bad\n" for n in range(5)))
        assert [row["text"] for _, row in read_rows(path)][2] == "good; number 2 | bad"


def test_news_without_a_header(new):
    """AG News: the class first, then title and description."""
    lines = "".join(f'"{1 + n % 4}","Title {n}","{text(n)}, a longer one"\n' for n in range(40))
    out, recipe = new(lines, "train.csv")
    assert "Found no header." in out
    assert recipe.task.format == "classification"
    assert recipe.task.columns == {"text": "column_3", "label": "column_1"}
    assert labels(recipe) == ("1", "2", "3", "4")
    assert len(examples(recipe)) == 40


def test_utf16_without_a_byte_order_mark(new):
    out, recipe = new(table(PLAIN).encode("utf-16-le"))
    assert "Found encoding utf-16-le." in out
    assert len(examples(recipe)) == 20


def test_archives_are_named(new):
    out, _ = new(b"PK\x03\x04", "rows.csv.zip")
    assert "an archive Unpack it, and name the file in it that holds the rows." in out


def test_what_was_downloaded_instead_of_data_is_named(new):
    out, _ = new("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert "a pointer of Git LFS, not the data itself git lfs pull" in out
    out, _ = new("<!DOCTYPE html>\n<html>Not, found</html>\n", "rows.json")
    assert "a web page, not data Download the file itself" in out


def test_a_file_of_labels_is_hinted_at(new, tmp_path):
    (tmp_path / "rows.lst").write_text("a\nb\n" * 10)
    out, recipe = new("text\n" + "".join(f"{a}\n" for a, _ in PLAIN))
    assert recipe is None
    assert "found no label column" in out
    assert "Are the labels in rows.lst? Join them: paste" in out


def test_a_line_that_cannot_be_read_does_not_stop_new(new):
    out, recipe = new(table(PLAIN) + "a,b,c,d\n" + table(PLAIN[:2]).partition("\n")[2])
    assert len(labels(recipe)) == 2
    assert "1 row cannot be used, the first: " in out
    assert "line 22: 4 fields under a header of 2" in out


# -- labels ----------------------------------------------------------------------------------------


def test_rows_without_a_label_are_left_out_and_named(new):
    rows = [(a, "" if n in (5, 6) else b) for n, (a, b) in enumerate(PLAIN)]
    for content, name in (
        (table(rows), "rows.csv"),
        ("\n".join(json.dumps({"text": a, "label": b or None}) for a, b in rows), "rows.jsonl"),
        (
            "\n".join(json.dumps({"text": a, **({"label": b} if b else {})}) for a, b in rows),
            "rows.jsonl",
        ),
    ):
        out, recipe = new(content, name)
        assert "2 rows without a label left out, the first: " in out
        assert labels(recipe) == ("a", "b")
        assert "cannot be used" not in out
        assert recipe.task.unlabelled == ("",)


def test_a_typing_error_is_not_made_a_class(new, tmp_path, capsys):
    rows = [(text(n), "postive" if n == 7 else ("positive", "negative")[n % 2]) for n in range(40)]
    out, recipe = new(table(rows))
    assert labels(recipe) == ("negative", "positive")
    assert recipe.task.unlabelled == ("postive",)
    assert "It resembles 'positive', so the row is left out (task.unlabelled)" in out
    recipe_text = (tmp_path / "rows.yaml").read_text()
    # A recipe that has it as a class.
    made = recipe_text.replace("unlabelled: [postive]", "").replace(
        "  negative: negative", "  postive: postive\n    negative: negative"
    )
    made = made.replace("    answers:", "    answers:\n      postive: postive")
    (tmp_path / "rows.yaml").write_text(made)
    assert len(labels(load_recipe(tmp_path / "rows.yaml"))) == 3
    assert main(["doctor", str(tmp_path / "rows.yaml"), "--base", "tiny"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "'postive' in train/7 may be a typing error of 'positive'" in out


@pytest.mark.parametrize(
    ("frequent", "rare"),
    [("happy", "unhappy"), ("not_entailment", "entailment"), ("intent_11", "intent_1"),
     ("class a", "class b"), ("decrease", "increase")],
)  # fmt: skip
def test_other_labels_of_one_row_are_classes(new, frequent, rare):
    rows = [(text(n), (frequent, "something else")[n % 2]) for n in range(40)]
    out, recipe = new(table([*rows, (text(41), rare)]))
    assert rare in labels(recipe)
    assert f"Only one row has the label {rare!r}" in out


def test_unicode_forms_and_cases_are_told(new, tmp_path, capsys):
    forms = [unicodedata.normalize(form, "thé") for form in ("NFC", "NFD")]
    words = [*forms, "Café", "café"]
    out, recipe = new(table([(text(n), words[n % 4]) for n in range(40)]))
    assert len(labels(recipe)) == 3
    assert "The label 'thé' occurs in two Unicode forms, which are equal" in out
    assert "The labels 'Café' and 'café' differ only in upper and lower case" in out
    assert main(["doctor", str(tmp_path / "rows.yaml"), "--base", "tiny"]) == 0
    assert "occurs in two Unicode forms" in " ".join(capsys.readouterr().out.split())


def test_a_column_called_label_that_is_constant_is_no_label(new):
    rows = [(a, "x", b) for a, b in PLAIN]
    _, recipe = new(table(rows, "text,label,sentiment"))
    assert recipe.task.columns["label"] == "sentiment"


def test_evaluation_rows_are_checked_at_once(new, tmp_path):
    (tmp_path / "dev.csv").write_text(table([("some text", "c"), ("another", "a")]))
    out, recipe = new(table(PLAIN), "train.csv")
    assert recipe.data.evaluate
    assert "1 row cannot be used, the first: " in out
    assert "dev.csv, line 2: unknown label 'c'" in out


def test_booleans_are_labels(new):
    for write in (str, json.dumps):
        rows = [(a, write(b == "a")) for a, b in PLAIN]
        _, recipe = new(table(rows))
        assert [example.label for example in examples(recipe)] == [1, 0] * 10
    rows = "\n".join(json.dumps({"text": a, "label": b == "a"}) for a, b in PLAIN)
    _, recipe = new(rows, "rows.jsonl")
    assert labels(recipe) == ("False", "True")


def test_decimal_commas_are_scores(new):
    rows = "".join(f"{text(n)};{n % 5},{n % 10}\n" for n in range(30))
    _, recipe = new(f"text;score\n{rows}")
    assert recipe.task.range == (0, 5)
    assert examples(recipe)[7].label == 2.7


def test_flags_that_no_row_has_are_labels(new):
    header = "text,toxic,threat,insult,obscene"
    _, recipe = new(table([(text(n), n % 2, 0, n // 2 % 2, n // 4 % 2) for n in range(24)], header))
    assert recipe.task.columns["label"] == ("toxic", "threat", "insult", "obscene")


def test_why_there_is_no_label(new):
    out, _ = new(table([(text(n), f"l{n}") for n in range(30)]))
    assert "found no label column label has 30 different values in 30 rows. Name it" in out
    out, _ = new(table([(text(n), "a") for n in range(30)]))
    assert "label has one value in 30 rows" in out
    out, _ = new("text,label\n")
    assert "no rows The file has at most a header." in out
    out, _ = new("Export of May\n" + table(PLAIN))
    assert "line 2: 2 fields under a header of 1" in out
    assert "Delete lines above the header." in out


# -- choices ---------------------------------------------------------------------------------------


def test_choices_inside_a_text_are_noticed(new):
    rows = [(f"Which is it, {n}? (A) this (B) that (C) both", "ABC"[n % 3]) for n in range(30)]
    out, recipe = new("".join(f'"{a}",{b}\n' for a, b in [("question", "label"), *rows]))
    assert recipe.task.format == "classification"
    assert "The texts of question seem to hold choices, such as (A) and (B)." in out


def test_numbers_from_one_count_the_choices(new):
    rows = [
        {"sent": text(n), "endings": ["one end", "two ends", "none"], "gold": 1 + n % 3}
        for n in range(30)
    ]
    _, recipe = new("\n".join(map(json.dumps, rows)), "rows.jsonl")
    assert recipe.task.format == "multiple_choice"
    assert [example.label for example in examples(recipe)] == [0, 1, 2] * 10


_ABCD = "question,A,B,C,D,answer"
CHOICES = {
    "letters in brackets": (_ABCD, lambda n: (text(n), n, "y", "z", "w", f"({'ABCD'[n % 4]})")),
    "names of columns": (
        "question,option1,option2,answer",
        lambda n: (text(n), n, "y", f"option{n % 2 + 1}"),
    ),
    "texts of columns": (
        "question,option1,option2,answer",
        lambda n: (text(n), f"x{n}", "y", (f"x{n}", "y")[n % 2]),
    ),
    "names in one word": (
        "question,answerA,answerB,answerC,label",
        lambda n: (text(n), f"a {n}", "b b", "c c", n % 3 + 1),
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices_in_columns(new, name):
    header, row = CHOICES[name]
    _, recipe = new(table(map(row, range(24)), header))
    columns = header.split(",")
    assert recipe.task.format == "multiple_choice"
    assert recipe.task.columns == {
        "context": "question",
        "choices": tuple(columns[1:-1]),
        "label": columns[-1],
    }
    count = len(columns) - 2
    assert [example.label for example in examples(recipe)] == [n % count for n in range(24)]


def test_choices_of_a_file_without_a_header(new):
    """MMLU: question, four choices and a letter."""
    lines = "".join(f'"{text(n)}, which?",a {n},b,c,d,{"ABCD"[n % 4]}\n' for n in range(24))
    _, recipe = new(lines)
    assert recipe.task.columns["choices"] == tuple(f"column_{k}" for k in (2, 3, 4, 5))
    assert [example.label for example in examples(recipe)] == [0, 1, 2, 3] * 6


def test_letters_in_some_rows_and_numbers_in_others(new):
    """ARC."""
    rows = [
        {"question": text(n), "answerKey": ("ABC", "123")[n % 2][n % 3]}
        | {"choices": {"text": ["a b", "c", f"d {n}"], "label": list(("ABC", "123")[n % 2])}}
        for n in range(24)
    ]
    _, recipe = new("\n".join(map(json.dumps, rows)), "rows.jsonl")
    assert recipe.task.columns["choices"] == "choices.text"
    assert labels(recipe) == ("A", "B", "C")
    assert [example.label for example in examples(recipe)] == [0, 1, 2] * 8


def test_a_text_that_is_a_part_of_another_is_not_repeated(new):
    """HellaSwag's ctx is ctx_a and ctx_b."""
    rows = [
        {"ctx_a": text(n), "ctx_b": "the dog", "ctx": f"{text(n)} the dog"}
        | {"endings": ["sat down", "stood up", "ran away"], "label": str(n % 3)}
        for n in range(24)
    ]
    _, recipe = new("\n".join(map(json.dumps, rows)), "rows.jsonl")
    assert recipe.task.columns == {"context": "ctx", "choices": "endings", "label": "label"}


def test_pairs_among_many_texts(new):
    """MNLI's JSON lines have parses of both sentences."""
    words = ("neutral", "entailment", "contradiction")
    rows = [
        {f"sentence{k}{kind}": f"{kind} {text(n + k)}" for k in (1, 2) for kind in ("", "_parse")}
        | {"annotator_labels": ["neutral"], "genre": "fiction", "gold_label": words[n % 3]}
        for n in range(24)
    ]
    _, recipe = new("\n".join(map(json.dumps, rows)), "rows.jsonl")
    assert recipe.task.format == "entailment"
    assert recipe.task.columns["hypothesis"] == "sentence2"


# -- JSON ------------------------------------------------------------------------------------------


def test_rows_of_the_hubs_viewer(new):
    rows = [{"row_idx": n, "row": {"text": a, "label": b}} for n, (a, b) in enumerate(PLAIN)]
    _, recipe = new(json.dumps({"features": [{"name": "text"}], "rows": rows}), "rows.json")
    assert recipe.task.columns == {"text": "row.text", "label": "row.label"}
    assert len(examples(recipe)) == 20


def test_json_that_is_nearly_right(new):
    rows = [{"text": a, "label": b} for a, b in PLAIN]
    for content, name in (
        ("[" + "".join(f"{json.dumps(row)},\n" for row in rows) + "]", "rows.json"),
        (json.dumps(rows), "rows.jsonl"),
        (json.dumps({f"id{n}": row for n, row in enumerate(rows)}), "rows.json"),
    ):
        _, recipe = new(content, name)
        assert len(examples(recipe)) == 20


def test_json_in_utf16_and_with_nan(new):
    rows = [{"text": a, "label": b, "score": float("nan")} for a, b in PLAIN]
    _, recipe = new(json.dumps(rows).encode("utf-16"), "rows.json")
    assert recipe.task.columns["label"] == "label"
    assert len(examples(recipe)) == 20


def test_what_is_said_about_a_file_is_said_once(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(table(PLAIN))
    assert open_file(path).describe() == ""
