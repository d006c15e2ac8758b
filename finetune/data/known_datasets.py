"""The folder layouts of known data sets: a table.

Columns are renamed to those of the hub's copy, so that one recipe reads both. To add a data set,
write its recipe (a YAML file) and add one KnownDataset below.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune.data.rows import ReadOptions

ANY_SPLIT = "*"

SPLITS = {"validation": ("validation", "dev", "val", "valid"), "train": ("train", "training")}
"""First word of a split's name on the hub to the words that file names use for it."""

COLLECTIONS = ("glue", "gluedata", "superglue", "scitailv11", "arcv1feb2018", "arcv1feb20182")
"""Normalized names of folders that hold folders of data sets."""


@dataclass(frozen=True)
class KnownDataset:
    """One layout of one data set: its folder names, the files of its splits, how they are read."""

    title: str
    names: tuple[str, ...]
    """Normalized names of its configurations on the hub."""
    folders: tuple[str, ...]
    """Normalized names of its folder."""
    options: ReadOptions
    files: Mapping[str, tuple[str, ...]]
    """Split, or ANY_SPLIT, to patterns of paths below the folder; the first that exists is used."""
    sharded: bool = False
    """Whether a split is all files that match a pattern, not a single one."""


def normalize_name(name: str) -> str:
    """Returns the letters and digits of a name in lower case, so that SST-2 equals sst2."""
    return "".join(character for character in name.lower() if character.isalnum())


def _glue(
    title: str,
    *names: str,
    rename: Mapping[str, str] | None = None,
    columns: tuple[str, ...] = (),
    files: Mapping[str, tuple[str, ...]] | None = None,
) -> KnownDataset:
    options = ReadOptions("tsv", columns, {"index": "idx", **(rename or {})})
    by_split = {**(files or {}), ANY_SPLIT: ("{split}.tsv",)}
    return KnownDataset(f"GLUE's {title}", names[:1], names, options, by_split)


def _pairs(label: str) -> dict[str, str]:
    return {"sentence1": "premise", "sentence2": "hypothesis", label: "label"}


_MNLI = {"index": "idx", **_pairs("gold_label")}
_ARC = {
    "question": "question.stem",
    "choices": {"text": "question.choices.text", "label": "question.choices.label"},
}
_STORIES = {
    "InputStoryid": "story_id",
    **{f"InputSentence{k}": f"input_sentence_{k}" for k in (1, 2, 3, 4)},
    "RandomFifthSentenceQuiz1": "sentence_quiz1",
    "RandomFifthSentenceQuiz2": "sentence_quiz2",
    "AnswerRightEnding": "answer_right_ending",
}


def _mnli(genre: str) -> KnownDataset:
    name = f"mnli{genre}"
    files = {
        "validation": (f"dev_{genre}.tsv",),
        "test": (f"test_{genre}.tsv",),
        "train": ("train.tsv",),
    }
    return KnownDataset("GLUE's MNLI", (name,), ("mnli",), ReadOptions("tsv", rename=_MNLI), files)


def _arc(level: str) -> KnownDataset:
    return KnownDataset(
        f"ARC {level}",
        (f"arc{level}",),
        (f"arc{level}", "arc"),
        ReadOptions("jsonl", nested=_ARC),
        {ANY_SPLIT: (f"arc-{level}-{{split}}.jsonl",)},
    )


def _race(level: str, *names: str) -> KnownDataset:
    files = {ANY_SPLIT: (f"{{split}}/{level}/*.txt",)}
    return KnownDataset("RACE", names, ("race",), ReadOptions("race"), files, sharded=True)


def _story_cloze(year: str) -> KnownDataset:
    return KnownDataset(
        "Story Cloze",
        (year,) if year else ("storycloze",),
        ("storycloze", "rocstories"),
        ReadOptions("csv", rename=_STORIES),
        {ANY_SPLIT: (f"cloze_test_{{split}}__*{year}*.csv",)},
    )


KNOWN_DATASETS = (
    _glue("RTE", "rte"),
    _glue("WNLI", "wnli"),
    _glue("QNLI", "qnli"),
    _glue("SST-2", "sst2"),
    _glue("CoLA", "cola", columns=("source", "label", "mark", "sentence")),
    _glue("STS-B", "stsb", rename={"score": "label"}),
    _glue("QQP", "qqp", rename={"id": "idx", "is_duplicate": "label"}),
    _glue(
        "MRPC",
        "mrpc",
        rename={"Quality": "label", "#1 String": "sentence1", "#2 String": "sentence2"},
        # The hub's test rows have labels; among GLUE's own files only this one has them.
        files={"test": ("msr_paraphrase_test.txt", "test.tsv")},
    ),
    _glue("MNLI", "mnli", rename=_MNLI),
    _mnli("matched"),
    _mnli("mismatched"),
    _glue("AX", "ax", "diagnostic", rename=_pairs("label"), files={"test": ("diagnostic.tsv",)}),
    KnownDataset(
        "SNLI",
        ("snli", "plaintext"),
        ("snli", "snli10"),
        ReadOptions("tsv", rename=_MNLI, min_fields=10),
        {ANY_SPLIT: ("{split}.tsv",)},
    ),
    KnownDataset(
        "SNLI",
        ("snli", "plaintext"),
        ("snli", "snli10"),
        ReadOptions("jsonl", rename=_pairs("gold_label")),
        {ANY_SPLIT: ("snli_1.0_{split}.jsonl",)},
    ),
    KnownDataset(
        "SciTail",
        ("scitail", "tsvformat"),
        ("scitail", "tsvformat"),
        ReadOptions("tsv", columns=("premise", "hypothesis", "label")),
        {ANY_SPLIT: ("scitail_1.0_{split}.tsv",)},
    ),
    _race("*", "all", "race"),
    _race("middle", "middle"),
    _race("high", "high"),
    _story_cloze("2016"),
    _story_cloze("2018"),
    _story_cloze(""),
    KnownDataset(
        "COPA", ("copa",), ("copa",), ReadOptions("jsonl"), {ANY_SPLIT: ("{split}.jsonl",)}
    ),
    _arc("challenge"),
    _arc("easy"),
)
