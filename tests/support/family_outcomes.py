"""What gptft makes of each causal family of transformers, compared with transformers' own numbers.

`python -m tests.support.family_outcomes` writes the table of docs/bases.md.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.utils import logging

from finetune.batching.collate import collate
from finetune.models.attention.check import StateCheck, has_linear_output
from finetune.models.decoder import find_body
from finetune.models.heads import LinearHead
from finetune.models.losses import Losses
from finetune.models.speedups.optimize import enable_packed_attention, optimize_decoder
from finetune.models.task_model import TaskModel
from task_formats import Encoded, UsageError
from tests.support import samples, small_configs
from tests.support.samples import LAYOUTS, PassResult

PAGE = Path(__file__).parents[2] / "docs" / "bases.md"
_TABLE_HEAD = "| family | layouts | LM loss | remark |\n|---|---|---|---|\n"


class Outcome(NamedTuple):
    """A row of the table."""

    layouts: str
    """all, separate, refused, or not tested."""
    lm_loss: str = ""
    """yes, or no."""
    remark: str = ""


def examine(family: str) -> Outcome:
    """Compares a small decoder of a family with transformers in every layout that it may use.

    Raises:
        AssertionError: A logit, a loss or a gradient differs.
    """
    try:
        plain = small_configs.draw(family).eval()
    except small_configs.NotBuiltError as error:
        return Outcome("not tested", remark=str(error))
    decoder = copy.deepcopy(plain)
    try:
        optimize_decoder(decoder)
    except UsageError as error:
        return Outcome("refused", remark=error.what.split(": ")[-1])
    reason = enable_packed_attention(again := copy.deepcopy(plain), StateCheck(again))
    has_lm_loss = has_linear_output(plain)
    many = draw_examples(plain.config.vocab_size)
    model = TaskModel(decoder, draw_head(plain)).eval()
    for coefficient in (0.5, 0.0) if has_lm_loss else (0.0,):
        expected = read_each_alone(plain, model.head, many, coefficient)
        for layout in LAYOUTS[:1] if reason else LAYOUTS:
            batch = collate(many, layout, pad=5)
            assert_same(samples.run(model, [batch], coefficient), expected)
            turned = samples.run(model, [collate([*map(turn, many)], layout, pad=5)], coefficient)
            assert_same(turned._replace(logits=turn_logits(turned.logits, many)), expected)
    assert samples.run(model.train(), [batch], coefficient).losses.total.isfinite()
    layouts = "separate" if reason else "all"
    return Outcome(layouts, "yes" if has_lm_loss else "no", reason or "")


def draw_examples(vocabulary: int) -> list[Encoded]:
    """Multiple choice with 2 to 4 choices; texts of 7 to 24 tokens."""
    draw = np.random.default_rng(0)
    lengths = [(15, (2, 9)), (6, (1, 4, 3)), (3, (12, 5, 4, 11))]
    return [
        Encoded(
            f"x/{n}",
            draw.integers(8, vocabulary, prefix).tolist(),
            tuple(draw.integers(8, vocabulary, length).tolist() for length in endings),
            label=n,
        )
        for n, (prefix, endings) in enumerate(lengths)
    ]


def turn(example: Encoded) -> Encoded:
    """The same example with its choices in the opposite order."""
    label = len(example.endings) - 1 - int(example.label)
    return example._replace(endings=example.endings[::-1], label=label)


def turn_logits(logits: Tensor, many: Sequence[Encoded]) -> Tensor:
    """(N, K) logits of turned examples in the order of the examples."""
    rows = [row[: len(e.endings)].flip(0) for row, e in zip(logits, many, strict=True)]
    return _pad(rows)


def draw_head(decoder: PreTrainedModel) -> LinearHead:
    """A head for choices with weights so large that they matter."""
    width = decoder.get_output_embeddings().weight.shape[1]
    head = LinearHead(width, 1, is_multiple_choice=True, dropout=0)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(1))
    return head


def read_each_alone(
    decoder: PreTrainedModel, head: LinearHead, many: Sequence[Encoded], coefficient: float
) -> PassResult:
    """Logits, losses and gradients from transformers' own code, one text at a time."""
    decoder.zero_grad()
    head.zero_grad()
    logits, lm_losses = [], []
    for example in many:
        scores = []
        for ending in example.endings:
            tokens = torch.tensor([[*example.prefix, *ending]])
            states = find_body(decoder)(input_ids=tokens, use_cache=False).last_hidden_state
            scores.append(states[0, -1] @ head.weight[0] + head.bias[0])
            if coefficient:
                predicted = decoder(input_ids=tokens, use_cache=False).logits[0, :-1]
                lm_losses.append(cross_entropy(predicted.float(), tokens[0, 1:]))
        logits.append(torch.stack(scores))
    labels = torch.tensor([example.label for example in many])
    task = cross_entropy(_pad(logits), labels)
    lm = torch.stack(lm_losses).mean() if lm_losses else torch.zeros(())
    total = task + coefficient * lm
    total.backward()
    modules = {"backbone.decoder": decoder, "head": head}
    gradients = {
        f"{prefix}.{name}": weight.grad.clone()
        for prefix, module in modules.items()
        for name, weight in module.named_parameters()
        if weight.grad is not None
    }
    losses = Losses(total.detach(), task.detach(), lm.detach())
    return PassResult(_pad(logits).detach(), losses, gradients)


def assert_same(one: PassResult, other: PassResult) -> None:
    """Equal up to rounding; a gradient that is not computed is 0."""
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-4, atol=1e-5)
    names = one.gradients.keys() | other.gradients.keys()
    zero = torch.zeros(())
    all_of = [{n: r.gradients.get(n, zero) for n in names} for r in (one, other)]
    assert samples.distance(*all_of) < 1e-3


def make_table(outcomes: dict[str, Outcome]) -> str:
    """The table of docs/bases.md."""
    rows = (f"| {family} | {' | '.join(outcome)} |\n" for family, outcome in outcomes.items())
    return _TABLE_HEAD + "".join(rows)


def read_table() -> dict[str, Outcome]:
    """Family to outcome, as docs/bases.md has it."""
    lines = PAGE.read_text("utf-8").split(_TABLE_HEAD)[1].splitlines()
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {family: Outcome(*values) for family, *values in cells}


def _pad(rows: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=-torch.inf)


def main() -> None:
    """Writes the table anew; a family whose numbers are wrong ends it with an AssertionError."""
    logging.set_verbosity_error()
    text = PAGE.read_text("utf-8").split(_TABLE_HEAD)[0]
    outcomes = {family: examine(family) for family in small_configs.FAMILIES}
    PAGE.write_text(text + make_table(outcomes), "utf-8")


if __name__ == "__main__":
    main()
