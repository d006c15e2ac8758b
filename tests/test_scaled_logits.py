"""Families whose logits are no plain linear map are refused where their logits are needed."""

import pytest
from samples import KINDS, examples, load, task_model

from finetune.batch import collate
from finetune.model import LanguageModel
from task_formats import UsageError

KIND = KINDS["entailment"]


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logits_scaling"])
def test_a_base_that_caps_or_scales_its_logits_has_a_head_and_no_lm_loss(bases, name) -> None:
    base = load(bases("llama"))
    batch = collate(examples(KIND, base), "packed")
    plain = task_model(KIND, base)(batch).logits
    setattr(base.decoder.config, name, 30.0)
    model = task_model(KIND, base)
    assert model(batch).logits.equal(plain)
    with pytest.raises(UsageError, match=name):
        model(batch, lm=True)
    with pytest.raises(UsageError, match=name):
        LanguageModel(base.decoder)
