"""Low-rank adapters: what trains, and what is saved."""

from pathlib import Path

import pytest
import torch

from finetune.batching.collate import collate
from finetune.checkpointing.model_folder import load_model, save_model
from finetune.models.lora import merge_adapters
from finetune.recipe.schema import LoraConfig
from task_formats import UsageError
from tests.support import samples
from tests.support.samples import KINDS


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_adapters_head_and_new_rows_train_and_are_saved_merged(
    family: str, bases, tmp_path: Path
) -> None:
    kind = KINDS["entailment"]
    base = samples.load(bases(family), lora=LoraConfig(rank=2))
    model = samples.task_model(kind, base)
    batch = collate(samples.examples(kind, base), "packed")
    table = model.backbone.output_layer()[0].shape
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.shape != table for weight in trained)
    optimizer = torch.optim.SGD(trained, lr=0.5)
    before = [weight.detach().clone() for weight in trained]
    for _ in range(2):  # B starts at 0, so A moves in the second step only.
        samples.run(model, [batch])
        optimizer.step()
    assert not any(torch.equal(*pair) for pair in zip(trained, before, strict=True))
    model.eval()
    with torch.no_grad():
        expected = model(batch, lm=True)
    save_model(tmp_path, model, base, kind.task, 40)
    assert not (tmp_path / "adapter_config.json").exists()
    loaded, _ = load_model(tmp_path, kind.task, 40)
    with torch.no_grad():
        outputs = loaded(batch, lm=True)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs.lm_loss, expected.lm_loss, rtol=1e-5, atol=1e-5)
    assert merge_adapters(loaded.backbone.decoder) is loaded.backbone.decoder


def test_adapters_need_layers_with_the_names_of_targets(bases) -> None:
    with pytest.raises(UsageError, match="does not fit this base") as caught:
        samples.load(bases("gpt2"), lora=LoraConfig(targets=("q_proj",)))
    assert "targets" in caught.value.cure
