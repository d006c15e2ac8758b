"""The same numbers as lm-evaluation-harness: log-likelihoods of answers, to 1e-4.

Both are asked the same requests of small random models of gpt2's and llama's shape: ragged
answers, answers of many tokens, and articles far longer than the 96 positions, which are cut.

    peer/bin/python -m benchmarks.likelihoods --data ../shared/data   # peer: see asking.py
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetune.prompting import PromptEvaluator
from finetune.recipe.loading import load_recipe
from task_formats import Demonstrations, Example, PromptEncoder
from tests.support.families import POSITIONS, make

TASKS = {"rte": "glue", "race": "race", "arc": "arc", "copa": "copa"}
FAMILIES = ("gpt2", "llama")
BOUND, GRAIN = 1e-4, 4
"""Nats, or so many units in the last place of float32 where these are more: the harness adds in
float32, and an answer of 60 tokens may have -400 nats, whose last place is 3e-5."""


def main() -> None:
    """Prints the largest difference of every case; exits with 1 where one is too large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with glue, race, ...")
    parser.add_argument("--limit", type=int, default=40, help="questions of a task")
    said = parser.parse_args()
    worst = 0.0
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            base = str(make(family, Path(folder)))
            peer = HFLM(pretrained=base, dtype="float32", batch_size=8, device="cpu")
            for task, home in TASKS.items():
                worst = max(worst, compare(task, said.data / home, base, peer, said.limit))
    sys.exit(worst > 1)


def compare(task: str, data: Path, base: str, peer: HFLM, limit: int) -> float:
    """The largest difference over all answers of a task, in parts of what is allowed."""
    changes = {"base.path": base, "data.path": str(data), "data.limit": limit}
    evaluator = PromptEvaluator(load_recipe(task, {**changes, "train.precision": "fp32"}))
    encoder = PromptEncoder(evaluator.task, evaluator.boundary, POSITIONS, Demonstrations([], 0))
    examples = [example for example in evaluator.questions if _fits(encoder, example)]
    questions = encoder.encode(examples)
    found = evaluator.log_likelihoods(questions)
    pairs = [encoder.write(example) for example in examples]
    requests = [Instance("loglikelihood", {}, (c, a), 0) for c, answers in pairs for a in answers]
    expected = np.array([value for value, _ in peer.loglikelihood(requests, disable_tqdm=True)])
    differences = np.abs(found[np.isfinite(found)] - expected)
    grain = GRAIN * np.spacing(np.abs(expected).astype(np.float32))
    cut = sum(question.cut > 0 for question in questions)
    longest = max(count for question in questions for count in question.token_counts)
    print(
        f"{peer.config.model_type} {task}: {len(requests)} answers of up to {longest} tokens, "
        f"{cut} of {len(questions)} questions cut: {differences.max():.1e}"
    )
    return float((differences / np.maximum(BOUND, grain)).max())


def _fits(encoder: PromptEncoder, example: Example) -> bool:
    """An answer longer than all positions is refused by us; the harness would cut it."""
    return all(len(answer.encode()) < POSITIONS for answer in encoder.write(example)[1])


if __name__ == "__main__":
    main()
