"""Questions per second, compared with lm-evaluation-harness on the same model and requests.

Both compute the log-likelihood of every answer, with tokenization and without loading; runs
alternate and medians count. The peer gets only `--peer-limit` questions, because it reads every
demonstration again for each. Their log-likelihoods must be equal to 1e-4.

    python -m venv peer && peer/bin/pip install -e . lm_eval
    peer/bin/python benchmarks/prompting.py --data ../shared/data --tokenizer MODEL
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from finetune.prompting import PromptEvaluator
from finetune.recipe.loading import load_recipe
from task_formats import Demonstrations, Example, PromptEncoder

CASES = {
    "rte, 0 shots": ("rte", 0),
    "rte, 32 shared shots": ("rte", 32),
    "race": ("race", 0),
    "arc": ("arc", 0),
}
POSITIONS = 8192
"""Enough for all demonstrations. Otherwise gptft would drop some, and the peer would truncate."""
FOLDERS = {"rte": "glue", "race": "race", "arc": "arc"}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with glue, race, arc")
    parser.add_argument("--tokenizer", required=True, help="a base; its weights are not used")
    parser.add_argument("--layers", type=int, default=12, help="of gpt2-small's shape")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=277, help="questions for gptft")
    parser.add_argument("--peer-limit", type=int, default=16, help="questions for the peer")
    parser.add_argument("--peer-batch", type=int, default=8)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), options)
        peer = HFLM(pretrained=folder, dtype="float32", batch_size=options.peer_batch, device="cpu")
        for case in options.cases:
            compare(case, folder, peer, options)


def draw(folder: Path, options: argparse.Namespace) -> None:
    """Saves a gpt2-small with random weights and positions for 32 demonstrations."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    config = GPT2Config(n_positions=POSITIONS, n_layer=options.layers)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.model_max_length = POSITIONS
    tokenizer.save_pretrained(folder)


def compare(case: str, folder: str, peer: HFLM, options: argparse.Namespace) -> None:
    """Prints the rates of both and the largest difference of their log-likelihoods."""
    name, shots = CASES[case]
    changes = {
        "base.path": folder,
        "data.path": str(options.data / FOLDERS[name]),
        "data.limit": None if shots else options.limit,
        "train.precision": "fp32",
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    evaluator = PromptEvaluator(load_recipe(name, changes))
    pool = evaluator.demonstration_pool if shots else []
    examples = evaluator.questions[: options.limit]
    demonstrations = Demonstrations(pool, shots, shared=True)
    encoder = PromptEncoder(evaluator.task, evaluator.answer_tokenizer, POSITIONS, demonstrations)
    peer_examples = examples[: options.peer_limit]
    ours, theirs = [], []
    for _ in range(options.rounds):
        start = time.perf_counter()
        log_likelihoods = evaluator.log_likelihoods(encoder.encode(examples))
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        expected = score_with(peer, encoder, peer_examples)
        theirs.append(time.perf_counter() - start)
    answers = np.concatenate(
        [row[np.isfinite(row)] for row in log_likelihoods[: len(peer_examples)]]
    )
    rate, other = (
        len(examples) / statistics.median(ours),
        len(peer_examples) / statistics.median(theirs),
    )
    print(
        f"{case}: {rate:.2f} questions/s against {other:.2f}, ratio {rate / other:.1f}; "
        f"largest difference {np.abs(answers - expected).max():.1e}"
    )


def score_with(peer: HFLM, encoder: PromptEncoder, examples: list[Example]) -> np.ndarray:
    """Log-likelihoods of all answers in order, computed by the harness."""
    pairs = [encoder.render(example) for example in examples]
    requests = [
        Instance("loglikelihood", {}, (context, answer), 0)
        for context, answers in pairs
        for answer in answers
    ]
    return np.array([value for value, _ in peer.loglikelihood(requests, disable_tqdm=True)])


if __name__ == "__main__":
    main()
