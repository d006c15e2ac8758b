"""Folders with predict.py: every kind of task, with transformers, onnxruntime and peft."""

import ast
import functools
import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import finetune
from finetune.checkpointing.model_folder import THRESHOLDS
from finetune.export.exporter import export_run
from finetune.export.standalone import SCRIPTS
from finetune.models import task_model
from finetune.models.heads import LinearHead
from finetune.recipe.schema import CustomFormatConfig
from task_formats import Example, UsageError
from tests.support import jobs, processes
from tests.support.families import FAMILIES
from tests.support.samples import WORDS
from tests.support.scripts import imports_from

pytestmark = pytest.mark.usefixtures("in_process")
KINDS = sorted(jobs.TASKS)


@pytest.mark.parametrize(
    ("kind", "family"),
    [*((kind, "gpt2") for kind in KINDS), *(("multiple_choice", family) for family in FAMILIES)],
)
def test_logits_are_those_of_gptft(kind, family, make_run, tmp_path):
    verification = export_run(make_run(kind, family), "standalone", tmp_path / "out")
    assert (verification.rows, verification.cut_differently) == (13, 0)
    assert verification.max_difference < 1e-4


def test_a_head_without_bias(make_run, tmp_path):
    export_run(make_run("similarity", bias=False), "standalone", tmp_path / "out")


def run_script(script: Path, *words: str) -> int:
    """Runs a program that cannot import gptft."""
    sys.modules |= dict.fromkeys(["finetune", "task_formats"])
    sys.argv = [str(script), *words]
    sys.path.insert(0, str(script.parent))  # as python does
    runpy.run_path(str(script), run_name="__main__")
    return 0


def test_predictions_are_those_of_gptft_without_gptft(make_run, tmp_path):
    run = make_run("multiple_choice")
    export_run(run, "standalone", tmp_path / "out")
    rows = jobs.rows("multiple_choice", 5)
    predictions = finetune.load(run, "cpu", precision="fp32").predict(rows)
    given = [
        {"context": f"{row['story']} {row['question']}", "choices": row["choices"]} for row in rows
    ]
    file = jobs.write_rows(tmp_path / "rows.jsonl", given)
    child = processes.start(
        run_script, tmp_path / "out" / "predict.py", file, output=tmp_path / "log"
    )
    child.join()
    output = (tmp_path / "log").read_text()
    assert child.exitcode == 0, output
    # Libraries may have warned.
    printed = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [row["label"] for row in printed] == [prediction.label for prediction in predictions]
    for row, prediction in zip(printed, predictions, strict=True):
        assert [*row["probabilities"].values()] == pytest.approx(prediction.scores, abs=1e-5)
        assert len(row["probabilities"]) == len(prediction.scores)


def functions_of(script):
    """The functions of one of the two scripts, as trees by name."""
    tree = ast.parse(SCRIPTS.joinpath(script).read_text("utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("labels", "thresholds", "logits", "answer"),
    [
        ([], {}, [2.5], {"score": 2.5}),
        (["no", "yes"], {}, [0.0, math.log(3)], {"no": 0.25, "yes": 0.75}),
        (["A", "B", "C"], {}, [math.log(4), 0.0], {"A": 0.8, "B": 0.2}),
        (
            ["sun", "rain"],
            {"sun": 0.4, "rain": 0.9},
            [0.0, math.log(3)],
            {"sun": 0.5, "rain": 0.75},
        ),
    ],
)
def test_both_scripts_give_answers_alike(labels, thresholds, logits, answer):
    arrays = {"predict.py": torch.tensor(logits), "predict_onnx.py": np.float32(logits)}
    for script, array in arrays.items():
        module = ast.Module([functions_of(script)["predict"]], [])
        names = {"np": np, "TASK": {"labels": labels, "thresholds": thresholds}}
        names["compute_logits"] = lambda row, array=array: array
        exec(compile(module, script, "exec"), names)
        found = names["predict"]({})
        if labels:
            label = ["sun"] if thresholds else max(answer, key=answer.get)
            assert found.pop("label") == label
            found = found.pop("probabilities")
        assert found == pytest.approx(answer)


@pytest.mark.slow
def test_labels_in_order_are_exported_to_onnx(make_run, tmp_path):
    pytest.importorskip("onnxruntime")
    run = make_run("classification", task={"ordinal": True})
    export_run(run, "onnx", tmp_path / "out")
    with pytest.raises(UsageError, match="a linear head, and this run has another, OrdinalHead"):
        export_run(run, "standalone", tmp_path / "other")


def test_several_labels_are_those_above_their_thresholds(make_run, tmp_path):
    run = make_run("multi_label")
    thresholds = {"sun": 0.1, "rain": 0.9, "wind": 0.5, "snow": 0.5}
    (run / "model" / THRESHOLDS).write_text(json.dumps(thresholds))
    export_run(run, "standalone", tmp_path / "out")
    rows = [{"text": row["text"]} for row in jobs.rows("multi_label", 6)]
    with imports_from(tmp_path / "out"):
        predict = runpy.run_path(str(tmp_path / "out" / "predict.py"))["predict"]
    found, predictor = [*map(predict, rows)], finetune.load(run, "cpu", precision="fp32")
    predictions = predictor.predict(rows)
    assert [tuple(row["label"]) for row in found] == [
        prediction.label for prediction in predictions
    ]
    for row, prediction in zip(found, predictions, strict=True):
        assert [*row["probabilities"].values()] == pytest.approx(prediction.scores, abs=1e-5)


@pytest.mark.parametrize("kind", ["similarity", "multiple_choice"])
def test_long_texts_are_cut_as_gptft_cuts_them(kind, make_run, tmp_path):
    export_run(make_run(kind, max_tokens=12), "standalone", tmp_path / "out")


VIEWS = (("{first} – {{first}}", "{second}"), ("Is it: {second}?",))
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)


@pytest.mark.parametrize("kind", ["similarity", "multiple_choice", "custom"])
def test_every_row_is_encoded_as_gptft_encodes_it(kind, make_run, tmp_path):
    task = {"format": CustomFormatConfig(views=VIEWS)} if kind == "custom" else {}
    run = make_run("similarity" if kind == "custom" else kind, max_tokens=14, task=task)
    export_run(run, "standalone", tmp_path / "out")
    encode = runpy.run_path(str(tmp_path / "out" / "encode.py"))["encode"]
    encoder = finetune.load(run, "cpu", precision="fp32").encoder

    @given(st.lists(TEXT, min_size=2, max_size=5))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def check(texts):
        fields = dict(zip(encoder.format.fields, texts, strict=False))
        choices = tuple(texts) if kind == "multiple_choice" else ()
        [encoded] = encoder.encode([Example("x", fields, choices)])
        views = [[*encoded.prefix, *ending] for ending in encoded.endings]
        assert encode({**fields, **({"choices": choices} if choices else {})}) == views

    check()


def test_half_precision(make_run, tmp_path):
    out = tmp_path / "out"
    verification = export_run(make_run("similarity"), "standalone", out, precision="bf16")
    assert 1e-4 < verification.max_difference < 1


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft uses a deprecated name.
@pytest.mark.parametrize(
    ("kind", "family"),
    # The weights of mistral are stored in bfloat16.
    [("classification", "gpt2"), ("multiple_choice", "llama"), ("entailment", "mistral")],
)
def test_adapters_are_loaded_by_peft(kind, family, make_run, tmp_path):
    pytest.importorskip("peft")
    run = make_run(kind, family, base_part={"lora": {"rank": 4}})
    export_run(run, "adapter", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["task_type"]) == (4, "CAUSAL_LM")
    assert not list((tmp_path / "out").glob("model*.safetensors"))


def test_runs_without_adapters_have_none_to_export(make_run, tmp_path):
    with pytest.raises(UsageError, match="trained all weights"):
        export_run(make_run("classification"), "adapter", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "family"),
    [*((kind, "gpt2") for kind in KINDS), *(("multiple_choice", family) for family in FAMILIES)],
)
def test_onnx_gives_the_logits_of_gptft(kind, family, make_run, tmp_path):
    pytest.importorskip("onnxruntime")
    export_run(make_run(kind, family), "onnx", tmp_path / "out")


def test_other_heads_than_a_linear_layer_are_for_onnx(make_run, tmp_path, monkeypatch):
    class OtherHead(LinearHead):
        pass

    run = make_run("classification")
    build = functools.partial(OtherHead, is_multiple_choice=False)
    monkeypatch.setattr(task_model, "build_head", lambda _, width, *__: build(width, 3))
    for name in ("standalone", "sequence-classification"):
        with pytest.raises(
            UsageError, match="linear head, and this run has another, OtherHead"
        ) as caught:
            export_run(run, name, tmp_path / "out")
        assert "onnx" in caught.value.cure
