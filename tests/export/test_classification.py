"""Runs as sequence and token classification of transformers."""

import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import finetune
from finetune.export import classification
from finetune.export.exporter import export_run
from finetune.models.task_tokens import EXTRACT
from task_formats import UsageError
from tests.support import jobs
from tests.support.families import SENTENCES

pytestmark = pytest.mark.usefixtures("in_process")

LAYER_NORM = ("openai-gpt", "gpt2", "gpt_neo", "gpt_neox", "opt", "opt_narrow")
RMS_NORM = ("llama", "mistral", "qwen3", "gemma3")
SEQUENCE, TOKEN = "sequence-classification", "token-classification"


def pipeline(folder):
    return transformers.pipeline("text-classification", str(folder), device="cpu")


@pytest.mark.parametrize("family", [*LAYER_NORM, *RMS_NORM])
def test_logits_are_those_of_gptft(family, make_run, tmp_path):
    run = make_run("entailment", family, bias=family in LAYER_NORM)
    verification = export_run(run, SEQUENCE, tmp_path / "out")
    assert (verification.rows, verification.cut_differently) == (13, 0)
    assert verification.max_difference < 1e-4


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("classification", "gpt2"),
        ("classification", "llama"),
        ("classification", "qwen3"),
        ("entailment", "gpt2"),
        ("entailment", "llama"),
        ("entailment", "qwen3"),
    ],
)
def test_the_pipeline_gives_the_probabilities_of_gptft(kind, family, make_run, tmp_path):
    run = make_run(kind, family, bias=family in LAYER_NORM, max_tokens=96)
    export_run(run, SEQUENCE, tmp_path / "out")
    names = ("text",) if kind == "classification" else ("premise", "hypothesis")
    rows = [{name: f" {SENTENCES[n + k]} \n" for k, name in enumerate(names)} for n in range(4)] + [
        dict.fromkeys(names, "Text that spells <|extract|> and <|endoftext|>.")
    ]
    predictions = finetune.load(run, "cpu", precision="fp32").predict(rows)
    given = [row[names[0]] for row in rows]
    if len(names) == 2:
        given = [{"text": row["premise"], "text_pair": row["hypothesis"]} for row in rows]
    classify = pipeline(tmp_path / "out")
    for batch_size in (1, 3):
        for one, prediction in zip(
            classify(given, batch_size=batch_size, top_k=None), predictions, strict=True
        ):
            scores = {item["label"]: item["score"] for item in one}
            labels = finetune.load_recipe(run / "recipe.yaml").task.build().labels.names
            assert [scores[name] for name in labels] == pytest.approx(prediction.scores, abs=1e-5)


def test_long_texts_are_cut_as_gptft_cuts_them(make_run, tmp_path):
    run = make_run("classification", max_tokens=9)
    assert export_run(run, SEQUENCE, tmp_path / "out").cut_differently == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer(SENTENCES[0], truncation=True)["input_ids"]) == 9


def test_long_pairs_may_be_cut_one_token_differently(make_run, tmp_path):
    run = make_run("entailment", max_tokens=16)  # 13 tokens of text
    verification = export_run(run, SEQUENCE, tmp_path / "out")
    assert 0 < verification.cut_differently < verification.rows
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer(SENTENCES[0], SENTENCES[1], truncation=True)["input_ids"]
    assert len(tokens) == 16


def test_a_score_is_exported_as_regression(make_run, tmp_path):
    task = {"labels": None, "range": (0, 5), "metrics": ("mse",)}
    run = make_run("classification", task=task)
    export_run(run, SEQUENCE, tmp_path / "out")
    [prediction] = finetune.load(run, "cpu", precision="fp32").predict([{"text": SENTENCES[0]}])
    [result] = pipeline(tmp_path / "out")([SENTENCES[0]])
    assert result == {"label": "score", "score": pytest.approx(prediction.label, abs=1e-4)}


def test_configuration_names_labels_and_the_pad_token(make_run, tmp_path):
    run = make_run("classification", "llama", bias=False)
    export_run(run, SEQUENCE, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "bad", "1": "middling", "2": "good"}
    assert config["problem_type"] == "single_label_classification"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert config["pad_token_id"] == tokenizer.pad_token_id
    assert "gptft" not in json.dumps(config)


@pytest.mark.parametrize("family", RMS_NORM)
def test_a_bias_that_no_norm_can_hold_is_refused(family, make_run, tmp_path):
    run = make_run("classification", family)
    with pytest.raises(UsageError, match="its final norm has none") as caught:
        export_run(run, SEQUENCE, tmp_path / "out")
    assert (TOKEN in caught.value.cure) == (family != "gemma3"), "transformers has no such class"
    assert "head.bias=false" in caught.value.cure
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run"]


def test_a_bias_outside_of_the_range_of_the_weights_is_refused(make_run, tmp_path):
    run = make_run("classification")
    head = load_file(run / "model" / "head.safetensors")
    head["weight"][1] = head["weight"][0]
    save_file(head, run / "model" / "head.safetensors")
    with pytest.raises(UsageError, match="the rows of the head's weight are not independent"):
        export_run(run, SEQUENCE, tmp_path / "out")
    head["bias"][1] = head["bias"][0]
    save_file(head, run / "model" / "head.safetensors")
    assert export_run(run, SEQUENCE, tmp_path / "out").max_difference < 1e-4


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gpt2"])
def test_token_classification_keeps_the_bias(family, make_run, tmp_path):
    export_run(make_run("entailment", family), TOKEN, tmp_path / "out")


@pytest.mark.parametrize("kind", ["classification", "entailment", "score", "multi_label"])
def test_the_code_of_the_card_gives_the_answer_of_gptft(kind, make_run, tmp_path):
    task = {"labels": None, "range": (0, 5), "metrics": ("mse",)} if kind == "score" else {}
    run = make_run("classification" if kind == "score" else kind, task=task)
    predictor = finetune.load(run, "cpu", precision="fp32")
    row = {name: f"{name} ..." for name in predictor.task.format.fields}
    [expected] = predictor.predict([row])
    for name in (SEQUENCE, TOKEN):
        export_run(run, name, tmp_path / name)
        card = (tmp_path / name / "README.md").read_text()
        [code] = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
        *lines, last = code.replace("FOLDER", str(tmp_path / name)).split("\n")
        values: dict = {}
        exec("\n".join(lines), values)
        answer = eval(last, values)
        if name == TOKEN:
            assert answer[0].tolist() == pytest.approx(expected.scores, abs=1e-5)
        else:
            [answer] = answer if isinstance(answer, list) else [answer]
            assert answer["score"] == pytest.approx(max(expected.scores), abs=1e-5)


def test_a_family_without_the_class_is_refused(make_run, tmp_path):
    with pytest.raises(UsageError, match="no AutoModelForTokenClassification for opt") as caught:
        export_run(make_run("entailment", "opt"), TOKEN, tmp_path / "out")
    assert "onnx" in caught.value.cure


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_folder_follows_the_published_rules_of_vllm(family, make_run, tmp_path):
    """One linear layer `score`, without a bias, at the last token; the tokenizer writes E there."""
    run = make_run("classification", family, bias=family == "gpt2")
    export_run(run, SEQUENCE, tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.architectures[0].endswith("ForSequenceClassification")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    heads = {name: tuple(weights[name].shape) for name in weights if name.startswith("score")}
    assert heads == {"score.weight": (config.num_labels, 32)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(tokenizer(SENTENCES[0])["input_ids"])[-1] == EXTRACT


def test_half_precision_is_reported_not_refused(make_run, tmp_path):
    verification = export_run(make_run("entailment"), SEQUENCE, tmp_path / "out", precision="bf16")
    assert 1e-4 < verification.max_difference < 1
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["similarity", "multiple_choice"])
def test_other_inputs_than_a_text_or_a_pair_are_refused(kind, make_run, tmp_path):
    with pytest.raises(UsageError, match="one text or one pair of texts"):
        export_run(make_run(kind), SEQUENCE, tmp_path / "out")


def test_a_wrong_export_is_found_and_leaves_nothing(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(classification, "fold_bias", lambda *_: True)
    with pytest.raises(UsageError, match="logits differ by up to"):
        export_run(make_run("classification"), SEQUENCE, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run"]


def test_a_wrong_tokenizer_is_found(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(classification.normalizers, "Strip", classification.normalizers.Lowercase)
    with pytest.raises(UsageError, match=r"tokenizer reads row .* differently"):
        export_run(make_run("classification"), SEQUENCE, tmp_path / "out")


def test_rows_to_check_can_be_given(make_run, tmp_path):
    run = make_run("classification")
    (tmp_path / "data" / "held-out.jsonl").unlink()
    with pytest.raises(UsageError, match="--check FILE"):
        export_run(run, SEQUENCE, tmp_path / "out")
    mine = jobs.write_rows(tmp_path / "mine.jsonl", jobs.rows("classification", 3))
    assert export_run(run, SEQUENCE, tmp_path / "out", check=mine).rows == 3
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"other.csv, line 2: no usable row .*: no column 'text'"):
        export_run(run, SEQUENCE, tmp_path / "more", check=str(tmp_path / "other.csv"))


def test_transformers_knows_several_labels(make_run, tmp_path):
    run = make_run("multi_label", max_tokens=96)
    export_run(run, SEQUENCE, tmp_path / "out")
    rows = jobs.rows("multi_label", 3)
    predictions = finetune.load(run, "cpu", precision="fp32").predict(rows)
    found = pipeline(tmp_path / "out")([row["text"] for row in rows], top_k=None)
    for one, prediction in zip(found, predictions, strict=True):
        scores = {item["label"]: item["score"] for item in one}
        names = jobs.TASKS["multi_label"].labels
        assert [scores[name] for name in names] == pytest.approx(prediction.scores, abs=1e-5)
