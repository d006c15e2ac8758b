"""The folder layouts of known data sets: a table.

Columns are renamed to those of the hub's copy, so that one recipe reads both. To add a data set,
write its recipe (a YAML file) and add one KnownDataset below.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from finetune.data.rows import ReadOptions

ANY_SPLIT = "*"
_Patterns = tuple[str, ...]

SPLITS = {"validation": ("validation", "dev", "val", "valid"), "train": ("train", "training")}
"""First word of a split's name on the hub to the words that file names use for it."""


def split_words(split: str) -> tuple[str, ...]:
    """The names a split's file may have: validation_matched may be dev_matched.

    >>> split_words("validation_matched")[:2]
    ('validation_matched', 'dev_matched')
    """
    for word, others in SPLITS.items():
        if split == word or split.startswith(f"{word}_"):
            return tuple(other + split.removeprefix(word) for other in others)
    return (split,)


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
    files: Mapping[str, _Patterns]
    """Split, or ANY_SPLIT, to patterns of paths below the folder; the first that exists is used."""
    sharded: bool = False
    """Whether a split is all files that match a pattern, not a single one."""


def normalize_name(name: str) -> str:
    """Returns the letters and digits of a name in lower case, so that SST-2 equals sst2."""
    return "".join(character for character in name.lower() if character.isalnum())


def _known(
    title: str, names: str, folders: str, options: ReadOptions, pattern: str, **files: _Patterns
) -> KnownDataset:
    """One entry; names and folders are words, and the pattern is of all splits not in `files`."""
    patterns = {**files, ANY_SPLIT: (pattern,)}
    return KnownDataset(title, tuple(names.split()), tuple(folders.split()), options, patterns)


def _glue(
    title: str,
    name: str = "",
    folders: str = "",
    columns: tuple[str, ...] = (),
    rename: Mapping[str, str] | None = None,
    **files: _Patterns,
) -> KnownDataset:
    name = name or normalize_name(title)
    options = ReadOptions("tsv", columns, {"index": "idx", **(rename or {})})
    return _known(f"GLUE's {title}", name, folders or name, options, "{split}.tsv", **files)


def _mnli(genre: str) -> KnownDataset:
    validation, test = (f"dev_{genre}.tsv",), (f"test_{genre}.tsv",)
    return _glue("MNLI", f"mnli{genre}", "mnli", rename=_MNLI, validation=validation, test=test)


def _race(names: str, level: str) -> KnownDataset:
    entry = _known("RACE", names, "race", ReadOptions("race"), f"{{split}}/{level}/*.txt")
    return replace(entry, sharded=True)


def _arc(level: str) -> KnownDataset:
    options, folders = ReadOptions("jsonl", nested=_ARC), f"arc{level} arc"
    return _known(f"ARC {level}", f"arc{level}", folders, options, f"arc-{level}-{{split}}.jsonl")


def _story_cloze(name: str, pattern: str) -> KnownDataset:
    options = ReadOptions("csv", rename=_STORIES)
    return _known("Story Cloze", name, "storycloze rocstories", options, pattern)


_PAIR = {"sentence1": "premise", "sentence2": "hypothesis"}
_MNLI = {"index": "idx", **_PAIR, "gold_label": "label"}
_AX = {**_PAIR, "label": "label"}
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
_MRPC = {"Quality": "label", "#1 String": "sentence1", "#2 String": "sentence2"}
_SNLI = ReadOptions("tsv", rename=_MNLI, min_fields=10)
_ORIGINAL_SNLI = ReadOptions("jsonl", rename={**_PAIR, "gold_label": "label"})
_SCITAIL = ReadOptions("tsv", columns=("premise", "hypothesis", "label"))

KNOWN_DATASETS = (
    _glue("RTE"),
    _glue("WNLI"),
    _glue("QNLI"),
    _glue("SST-2"),
    _glue("CoLA", columns=("source", "label", "mark", "sentence")),
    _glue("STS-B", rename={"score": "label"}),
    _glue("QQP", rename={"id": "idx", "is_duplicate": "label"}),
    # The hub's test rows have labels; among GLUE's own files only the first of these has them.
    _glue("MRPC", rename=_MRPC, test=("msr_paraphrase_test.txt", "test.tsv")),
    _glue("MNLI", rename=_MNLI),
    _mnli("matched"),
    _mnli("mismatched"),
    _glue("AX", folders="ax diagnostic", rename=_AX, test=("diagnostic.tsv",)),
    _known("SNLI", "snli plaintext", "snli snli10", _SNLI, "{split}.tsv"),
    _known("SNLI", "snli plaintext", "snli snli10", _ORIGINAL_SNLI, "snli_1.0_{split}.jsonl"),
    _known(
        "SciTail", "scitail tsvformat", "scitail tsvformat", _SCITAIL, "scitail_1.0_{split}.tsv"
    ),
    _race("all race", "*"),
    _race("middle", "middle"),
    _race("high", "high"),
    _story_cloze("2016", "cloze_test_{split}__*2016*.csv"),
    _story_cloze("2018", "cloze_test_{split}__*2018*.csv"),
    _story_cloze("storycloze", "cloze_test_{split}__**.csv"),
    _known("COPA", "copa", "copa", ReadOptions("jsonl"), "{split}.jsonl"),
    _arc("challenge"),
    _arc("easy"),
)
