"""The parts of the library, used in your own program.

Run: python examples/library.py --base gpt2
"""

import argparse

from finetune.batching.collate import collate
from finetune.batching.sampler import BatchConfig
from finetune.distributed.setup import create_accelerator
from finetune.evaluation.evaluate import compute_logits, evaluate
from finetune.models.pretrained import load_decoder
from finetune.models.task_model import build_task_model
from finetune.recipe.schema import BaseConfig, TrainConfig
from finetune.training.loop import LoopSettings, MicroBatches, run_updates
from finetune.training.optimizer import build_optimizer, build_schedule
from task_formats import FORMATS, Classes, Task, ViewEncoder

RAIN = ["It rains again.", "The street is wet.", "Take an umbrella.", "Clouds, and a storm."]
SUN = ["The sky is blue.", "The grass is dry.", "Take your sunglasses.", "A hot, bright noon."]
ROWS = [{"text": text, "label": "rain" if text in RAIN else "sun"} for text in [*RAIN, *SUN]]
TASK = Task(
    FORMATS["classification"],
    {"text": "text", "label": "label"},
    Classes.of(["rain", "sun"]),
    metrics=("accuracy",),
)


def main() -> None:
    """Row -> Example -> Encoded -> Batch -> logits, and twenty updates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="gpt2", help="a Hub id, a folder, or tiny")
    base = load_decoder(BaseConfig(path=parser.parse_args().base))
    encoder = ViewEncoder(
        TASK.format, base.task_tokens.tokenize, base.task_tokens.special_tokens, max_tokens=48
    )
    encoded = encoder.encode([TASK.example(row, f"train/{n}") for n, row in enumerate(ROWS)])
    view = [*encoded[0].prefix, *encoded[0].endings[0]]
    print(" ".join(base.task_tokens.tokenizer.convert_ids_to_tokens(view)))

    accelerator = create_accelerator("fp32")
    model = build_task_model(base, TASK).to(accelerator.device)
    settings = LoopSettings(build_schedule(peak=1e-3, updates=20, warmup=0.1))
    optimizer = build_optimizer(model.parameters(), TrainConfig(learning_rate=1e-3))

    def make_microbatches(update: int, max_tokens: int | None) -> MicroBatches:
        batch = collate(encoded, "separate", base.task_tokens.pad_id)
        return MicroBatches([batch], len(encoded), sum(example.tokens for example in encoded))

    for step in run_updates(
        model, optimizer, range(1, 21), make_microbatches, settings, accelerator
    ):
        print(f"update {step.number}: {', '.join(f'{loss:.3f}' for loss in step.losses)}")
    logits = compute_logits(
        model, encoded, BatchConfig("separate", base.task_tokens.pad_id, 2048), accelerator
    )
    print(evaluate(logits, encoded, TASK, accelerator).scores)


if __name__ == "__main__":
    main()
