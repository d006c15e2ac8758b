"""Settings of a recipe: early stopping, checkpoints, extra splits, random weights, adapters."""

import pytest
import torch
from safetensors.torch import load_file

import finetune
import finetune.training.finetuning
from finetune.checkpointing import checkpoint
from finetune.cli import main
from finetune.distributed.setup import create_accelerator
from finetune.storage import files
from finetune.training.events import Evaluated, Finished, Notice, Started
from finetune.training.finetuning import events, prepare_finetuning
from finetune.training.loop import Step
from finetune.training.optimizer import take_step
from task_formats import UsageError
from tests.support import jobs


def test_patience_stops_a_run_that_does_not_improve(bases, tmp_path) -> None:
    settings = {"learning_rate": 1e-12, "epochs": 5, "patience": 2}
    recipe = jobs.recipe("classification", bases("gpt2"), tmp_path / "data", **settings)
    seen = list(events(recipe, tmp_path / "run"))
    assert [event.number for event in seen if isinstance(event, Step)] == [*range(1, 10)]
    assert [e.best for e in seen if isinstance(e, Evaluated)] == [True, False, False]
    assert "stopping early: no improvement for 2 evaluations" in [
        event.text for event in seen if isinstance(event, Notice)
    ]
    assert (seen[-1].result.update, seen[-1].result.updates) == (3, 9)


def test_the_best_model_is_saved_not_the_last(bases, tmp_path, monkeypatch) -> None:
    values = iter([0.1, 0.7, 0.7, 0.2])
    monkeypatch.setattr(finetune.training.finetuning, "selection_value", lambda *_: next(values))
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", evaluations=2)
    run = tmp_path / "run"
    at_best = {}
    for event in events(recipe, run):
        if isinstance(event, Evaluated) and event.best:
            at_best = {"update": event.update, "weights": jobs.weights(run), **event.scores}
    assert at_best["update"] == jobs.result(run)["update"] == 3
    assert jobs.distance(jobs.weights(run), at_best["weights"]) == 0
    last = checkpoint.load_latest_checkpoint(run / "checkpoints")[0].tensors
    assert not torch.equal(last["weight.head.weight"], jobs.weights(run)["weight"])
    (scores,) = jobs.result(run)["scores"].values()
    assert scores == {name: at_best[name] for name in scores}


def test_checkpoints_are_written_only_if_configured(bases, tmp_path) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", checkpoint_minutes=None)
    jobs.train(recipe, tmp_path / "none")
    assert not (tmp_path / "none" / "checkpoints").exists()
    jobs.train(jobs.change(recipe, "train", checkpoint_updates=4), tmp_path / "some")
    found = sorted(path.name for path in (tmp_path / "some" / "checkpoints").iterdir())
    assert found == ["update-00000006"]


def test_a_limit_for_training_does_not_limit_evaluation(bases, tmp_path, capsys) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", epochs=1)
    run = jobs.train(jobs.change(recipe, "data", limit=8), tmp_path / "run")
    predictor = finetune.load(run)
    split, result = predictor.evaluate_split()
    assert len(result.predictions) == len(split.examples) == 9
    assert predictor.evaluate() == result.scores != jobs.result(run)["scores"]["evaluate"]
    assert predictor.evaluate(limit=8) == jobs.result(run)["scores"]["evaluate"]
    for options, rows in (([], "9"), (["--limit", "3"], "3")):
        assert main(["evaluate", str(run), *options]) == 0
        header, _, scores = filter(str.strip, capsys.readouterr().out.splitlines())
        assert header.split()[:2] == ["split", "rows"]
        assert scores.split()[:2] == ["evaluate", rows]


def test_extra_splits_are_scored_at_the_end(bases, tmp_path) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    hard = jobs.rows("entailment", 7, seed=5)
    extra = {
        "hard": jobs.write_rows(tmp_path / "hard.jsonl", hard),
        "blank": jobs.write_rows(tmp_path / "blank.jsonl", [{**hard[0], "label": None}]),
    }
    recipe = jobs.change(recipe, "data", extra=extra)
    seen = list(events(recipe, tmp_path / "run"))
    scores = jobs.result(tmp_path / "run")["scores"]
    assert len(scores) == 2
    assert finetune.load(tmp_path / "run").evaluate("hard") == scores["hard"]
    notices = [event.text for event in seen if isinstance(event, Notice)]
    assert "blank has no labels, so it is not scored" in notices


def test_without_an_evaluation_split_the_last_model_is_saved(bases, tmp_path) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    run = tmp_path / "run"
    seen = list(events(jobs.change(recipe, "data", evaluate=None), run))
    assert not [event for event in seen if isinstance(event, Evaluated)]
    assert isinstance(seen[-1], Finished)
    assert (seen[-1].result.scores, seen[-1].result.update) == ({}, 6)
    last = checkpoint.load_latest_checkpoint(run / "checkpoints")[0].tensors
    assert torch.equal(last["weight.head.weight"], jobs.weights(run)["weight"])
    assert len(finetune.load(run).predict(jobs.rows("entailment", 2))) == 2


def test_from_scratch_keeps_only_the_configuration(bases, tmp_path) -> None:
    still = {"learning_rate": 1e-12, "epochs": 1}
    folder = bases("gpt2")
    kept, drawn, again = (
        jobs.weights(
            jobs.train(
                jobs.recipe("entailment", folder, tmp_path / "d", base_part=part, **still),
                tmp_path / name,
            )
        )
        for name, part in [
            ("kept", {}),
            ("drawn", {"from_scratch": True}),
            ("again", {"from_scratch": True}),
        ]
    )
    name = "transformer.h.0.mlp.c_fc.weight"
    old = load_file(folder / "model.safetensors")[name]
    assert torch.allclose(kept[name], old, atol=1e-9)
    assert drawn[name].shape == old.shape
    assert not torch.allclose(drawn[name], old, atol=1e-3)
    assert drawn[name].std().item() == pytest.approx(0.02, rel=0.1)
    assert jobs.distance(drawn, again) == 0


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_adapters_are_trained_merged_and_loaded(family: str, bases, tmp_path) -> None:
    part = {"lora": {"rank": 4, "dropout": 0.1}}
    recipe = jobs.recipe(
        "entailment", bases(family), tmp_path / "data", base_part=part, learning_rate=3e-3
    )
    run = tmp_path / "run"
    seen = list(events(recipe, run))
    (started,) = [event for event in seen if isinstance(event, Started)]
    weights, old = jobs.weights(run), load_file(bases(family) / "model.safetensors")
    assert started.parameters < 0.5 * sum(tensor.numel() for tensor in old.values())
    # Merged, so the weights have the base's names; only the linear layers changed.
    assert weights.keys() == {*old, "weight", "bias"}
    moved = {name for name in old if weights[name].shape != old[name].shape
             or not torch.equal(weights[name], old[name].float())}  # fmt: skip
    assert moved
    assert not [name for name in moved if "ln_" in name or "norm" in name]
    best = [event for event in seen if isinstance(event, Evaluated) and event.best][-1]
    (scores,) = jobs.result(run)["scores"].values()
    assert finetune.load(run).evaluate() == scores
    assert scores == pytest.approx(best.scores, rel=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_without_the_lm_loss_only_the_task_is_learned(family, lora, bases, tmp_path) -> None:
    part = {"lora": lora}
    recipe = jobs.recipe(
        "entailment", bases(family), tmp_path / "data", base_part=part, lm_coefficient=0
    )
    run = jobs.train(recipe, tmp_path / "run")
    steps = [event for event in jobs.log(run) if event["event"] == "train"]
    assert {step["lm_loss"] for step in steps} == {0.0}
    assert all(step["loss"] == step["task_loss"] > 0 for step in steps)


def test_frozen_layers_stay_as_they_are(bases, tmp_path) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", freeze_layers=1)
    weights = jobs.weights(jobs.train(recipe, tmp_path / "run"))
    old = load_file(bases("gpt2") / "model.safetensors")
    rows = len(old["transformer.wte.weight"])
    changed = {name for name in old if not torch.equal(weights[name][:rows], old[name])}
    lowest = {name for name in old if name.startswith("transformer.h.0.") or ".wte." in name}
    lowest |= {"transformer.wpe.weight"}
    assert changed == old.keys() - lowest
    with pytest.raises(UsageError, match="has 2 blocks, so 3 cannot be frozen"):
        jobs.train(jobs.change(recipe, "train", freeze_layers=3), tmp_path / "many")


def test_lower_layers_have_lower_learning_rates(bases, tmp_path) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path, layer_decay=0.5, learning_rate=0.1)
    job = prepare_finetuning(recipe, recipe.task.build(), create_accelerator("fp32"))
    take_step(job.optimizer, "adamw", 1, 0.1, 1e-8, torch.zeros(()))
    names = {parameter: name for name, parameter in job.model.named_parameters()}
    rates = {names[p]: group["lr"] for group in job.optimizer.param_groups for p in group["params"]}
    assert rates.keys() == {n for n, p in job.model.named_parameters() if p.requires_grad}
    for name, rate in rates.items():
        factor = 1.0
        if "wte" in name or "wpe" in name:
            factor = 0.25
        elif ".h.0." in name:
            factor = 0.5
        assert rate == pytest.approx(0.1 * factor), name


@pytest.mark.parametrize("keep", [0, 1, 3, 9])
def test_a_finished_run_keeps_its_newest_checkpoints(bases, tmp_path, keep) -> None:
    recipe = jobs.recipe(
        "entailment", bases("gpt2"), tmp_path, checkpoint_updates=1, keep_checkpoints=keep
    )
    run = tmp_path / "run"
    jobs.stop_at(recipe, run, 5)
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())
    numbers = [f"update-{number:08d}" for number in range(1, 7)]
    assert saved == numbers[max(0, 5 - max(2, keep)) : 5]
    jobs.train(recipe, run, resume=True)
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert saved == numbers[max(0, 6 - keep) :]


def test_a_disk_that_will_be_full_is_reported_before_the_first_update(
    bases, tmp_path, monkeypatch
) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path)
    run = tmp_path / "run"
    needed = jobs.prepare(recipe).required_disk_bytes()
    monkeypatch.setattr(files, "free_space", lambda folder: needed - 1)
    with pytest.raises(UsageError, match=r"the run needs .* MiB of disk space .* are free"):
        jobs.train(recipe, run)
    assert not (run / "metrics.jsonl").exists() or not jobs.log(run)
    monkeypatch.setattr(files, "free_space", lambda folder: needed)
    jobs.train(recipe, run, resume=True)
    used = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    assert needed > used
