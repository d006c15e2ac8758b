"""Log-likelihoods of answers equal those of lm-evaluation-harness to 1e-4.

Both get the same requests for small random models of gpt2's and llama's architecture, or for a
real base: answers of different lengths, and articles far longer than the 96 tokens that are read,
which are truncated.

    peer/bin/python -m benchmarks.likelihoods --data ../shared/data   # see prompting.py
    peer/bin/python -m benchmarks.likelihoods --data ../shared/data --base smollm2-135m
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetune.models.pretrained import find_base
from finetune.prompting import PromptEvaluator
from finetune.recipe.loading import load_recipe
from task_formats import Demonstrations, Example, PromptEncoder
from tests.support.families import POSITIONS, make

TASKS = {"rte": "glue", "race": "race", "arc": "arc", "copa": "copa"}
FAMILIES = ("gpt2", "llama")
BOUND, ULPS = 1e-4, 4
"""Tolerance in nats, or in float32 units in the last place if that is more: the harness sums in
float32, and one unit of -400 nats (an answer of 60 tokens) is 3e-5."""


def main() -> None:
    """Prints the largest difference of every case; exits with 1 if one is too large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with glue, race, ...")
    parser.add_argument("--base", help="instead of the small random models")
    parser.add_argument("--limit", type=int, default=40, help="questions of a task")
    options = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        if options.base:
            bases = [find_base(options.base)]
        else:
            bases = [str(make(family, Path(folder, family))) for family in FAMILIES]
        for base in bases:
            peer = HFLM(
                pretrained=base, dtype="float32", max_length=POSITIONS, batch_size=8, device="cpu"
            )
            for task, home in TASKS.items():
                worst = max(worst, compare(task, options.data / home, base, peer, options.limit))
    sys.exit(worst > 1)


def compare(task: str, data: Path, base: str, peer: HFLM, limit: int) -> float:
    """The largest difference over all answers of a task, as a fraction of the tolerance."""
    changes = {"base.path": base, "data.path": str(data), "data.limit": limit}
    evaluator = PromptEvaluator(load_recipe(task, {**changes, "train.precision": "fp32"}))
    encoder = PromptEncoder(
        evaluator.task, evaluator.answer_tokenizer, POSITIONS, Demonstrations([], 0)
    )
    examples = [example for example in evaluator.questions if _fits(encoder, example)]
    questions = encoder.encode(examples)
    log_likelihoods = evaluator.log_likelihoods(questions)
    pairs = [encoder.render(example) for example in examples]
    requests = [Instance("loglikelihood", {}, (c, a), 0) for c, answers in pairs for a in answers]
    expected = np.array([value for value, _ in peer.loglikelihood(requests, disable_tqdm=True)])
    differences = np.abs(log_likelihoods[np.isfinite(log_likelihoods)] - expected)
    rounding = ULPS * np.spacing(np.abs(expected).astype(np.float32))
    cut = sum(question.truncated_tokens > 0 for question in questions)
    longest = max(count for question in questions for count in question.token_counts)
    print(
        f"{peer.config.model_type} {task}: {len(requests)} answers of up to {longest} tokens, "
        f"{cut} of {len(questions)} questions cut: {differences.max():.1e}"
    )
    return float((differences / np.maximum(BOUND, rounding)).max())


def _fits(encoder: PromptEncoder, example: Example) -> bool:
    """The harness truncates an answer longer than all positions; gptft refuses it."""
    return all(len(answer.encode()) < POSITIONS for answer in encoder.render(example)[1])


if __name__ == "__main__":
    main()
