"""Short reviews whose words of praise and blame are others in training than in evaluation.

What the words in evaluation mean cannot be learned from the training rows. A decoder knows it from
pre-training, or guesses.
"""

import json
import random
from itertools import product
from pathlib import Path

_TRAINING = {
    "good": "excellent delightful superb charming brilliant lovely splendid magnificent "
    "enjoyable impressive pleasant gorgeous memorable exciting",
    "bad": "terrible dreadful horrible boring disappointing ugly miserable clumsy "
    "annoying pathetic unpleasant stupid forgettable tedious",
}
_EVALUATION = {
    "good": "wonderful fantastic marvelous beautiful amazing great fascinating outstanding",
    "bad": "awful bad poor disgusting dull ridiculous worthless nasty",
}
_THINGS = "film novel concert meal hotel play story song show exhibition party game".split()
_SENTENCES = (
    "The {thing} was {word}.",
    "I found the {thing} {word}.",
    "What a {word} {thing}!",
    "It was a {word} {thing}, from beginning to end.",
)
ROWS = {"train": 192, "evaluate": 96}


def write_reviews(folder: Path) -> dict[str, str]:
    """Writes both splits, half good and half bad, and returns their files by name."""
    files = {}
    for split, words in (("train", _TRAINING), ("evaluate", _EVALUATION)):
        rows = []
        for label, text in words.items():
            cases = list(product(text.split(), _THINGS, _SENTENCES))
            random.Random(split + label).shuffle(cases)
            for word, thing, sentence in cases[: ROWS[split] // 2]:
                review = sentence.format(thing=thing, word=word)
                rows.append({"text": review, "label": label})
        random.Random(split).shuffle(rows)
        files[split] = str(folder / f"{split}.jsonl")
        content = "".join(json.dumps(row) + "\n" for row in rows)
        Path(files[split]).write_text(content, encoding="utf-8")
    return files
