"""LanguageModel against transformers' own losses and logits."""

import numpy as np
import pytest
import torch

from finetune.batching.collate import collate
from finetune.models.language_model import LanguageModel
from task_formats import Encoded
from tests.support import samples
from tests.support.families import FAMILIES
from tests.support.samples import KINDS


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_text_has_the_loss_that_transformers_gives_it(family, bases) -> None:
    base = samples.load(bases(family))
    blocks = np.random.default_rng(0).integers(0, len(base.task_tokens.tokenizer) - 4, size=(3, 24))
    batch = collate([Encoded(f"c/{n}", block, ()) for n, block in enumerate(blocks)], "separate")
    assert batch.last_index.shape == (3, 0)
    model = LanguageModel(base.decoder).eval()
    with torch.no_grad():
        outputs = model(batch, lm=True)
        base.decoder.set_attn_implementation("eager")
        tokens = torch.from_numpy(blocks)
        expected = base.decoder(tokens, labels=tokens).loss
    assert outputs.logits.shape == (3, 0)
    torch.testing.assert_close(outputs.lm_loss, expected, rtol=1e-6, atol=1e-6)


def test_the_score_of_an_ending_is_its_log_likelihood(bases) -> None:
    kind, base = KINDS["multiple_choice"], samples.load(bases("gpt2"))
    many = samples.examples(kind, base, count=3)
    model = LanguageModel(base.decoder).eval()
    with torch.no_grad():
        separate, packed = (model(collate(many, x)).logits for x in ("separate", "packed"))
        base.decoder.set_attn_implementation("eager")
        for n, example in enumerate(many):
            for k, view in enumerate(samples.views(example)):
                logs = base.decoder(torch.tensor([view])).logits[0].log_softmax(-1)
                columns = range(len(example.prefix), len(view))
                expected = sum(logs[t - 1, view[t]] for t in columns)
                for scores in (separate, packed):
                    torch.testing.assert_close(scores[n, k], expected, rtol=1e-5, atol=1e-5)
            assert (separate[n, len(example.endings) :] == -torch.inf).all()
