"""Plans: the paper's defaults, loading from files, and errors."""

import pytest
from pydantic import ValidationError

from finetune.pretraining.architectures import build_decoder
from finetune.pretraining.plan import Plan, load_plan, parse_plan, shipped_plans
from task_formats import UsageError

CORPUS = {"train": "books"}


def test_defaults_are_the_papers():
    """GPT-1, section 4.1."""
    plan = Plan.model_validate({"corpus": CORPUS})
    shape, train = plan.shape, plan.train
    assert (shape.style, shape.layers, shape.width, shape.heads) == ("gpt1", 12, 768, 12)
    assert (shape.positions, plan.tokenizer.vocabulary) == (512, 40_000)
    assert (train.learning_rate, train.warmup_updates, train.epochs) == (2.5e-4, 2000, 100)
    assert (train.batch_size, train.context, train.dropout) == (64, None, 0.1)
    assert (train.weight_decay, train.initial_spread, train.max_grad_norm) == (0.01, 0.02, 1.0)
    assert plan.corpus.train == ("books",)
    assert not train.mix_documents


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": {"train": []}}, "at least 1 item"),
        ({"corpus": {**CORPUS, "trian": "x"}}, "trian"),
        ({"shape": {"width": 100, "heads": 12}}, "width 100 is not a multiple of heads 12"),
        ({"shape": {"style": "llama", "heads": 12, "key_value_heads": 5}}, "key_value_heads 5"),
        ({"shape": {"style": "llama", "width": 36, "heads": 12}}, "even"),
        ({"shape": {"style": "gpt2", "tied": False}}, "for style: llama"),
        ({"shape": {"style": "gpt3"}}, "gpt1"),
        ({"shape": {"style": "gpt1", "feed_forward": 64}}, "4 · width"),
        ({"train": {"context": 1}}, "greater than or equal to 2"),
        ({"train": {"context": 513}}, "train.context 513 is more than shape.positions 512"),
        ({"tokenizer": {"vocabulary": 256}}, "257"),
        ({"train": {"learning_rate": 0}}, "greater than 0"),
    ],
)
def test_invalid_values_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        Plan.model_validate({"corpus": CORPUS, **changes})


def test_shipped_plans_load_and_round_trip_through_yaml():
    assert "tiny" in shipped_plans()
    for name in shipped_plans():
        plan = load_plan(name)
        assert plan.about
        assert parse_plan(plan.to_yaml()) == plan


def test_the_shipped_base_is_smaller_than_ten_megabytes():
    """Two bytes for each of GPT-2's parameters, and 300 kB for the tokenizer."""
    plan = load_plan("tiny")
    shape = plan.shape
    blocks = shape.layers * (12 * shape.width**2 + 13 * shape.width)
    tables = (plan.tokenizer.vocabulary + shape.positions) * shape.width
    assert 2 * (blocks + tables + 2 * shape.width) + 300_000 < 10_000_000
    assert plan.train.store == "bf16"


def test_the_mini_plan_has_29_676_544_parameters():
    plan = load_plan("mini")
    shape, vocabulary = plan.shape, plan.tokenizer.vocabulary
    decoder = build_decoder(plan, vocabulary, 0)
    count = sum(part.numel() for part in decoder.parameters())
    blocks = shape.layers * (12 * shape.width**2 + 13 * shape.width)
    tables = (vocabulary + shape.positions) * shape.width
    assert count == blocks + tables + 2 * shape.width == 29_676_544
    assert plan.train.store == "bf16"


def test_paths_are_relative_to_the_plan_and_those_of_overrides_to_the_current_folder(
    tmp_path, monkeypatch
):
    (tmp_path / "old").mkdir()
    path = tmp_path / "mine.yaml"
    path.write_text(
        "corpus: {train: [a, b/*.txt], evaluate: v}\nbase: old\ntokenizer: {path: gpt2}"
    )
    plan = load_plan(path)
    assert plan.corpus.train == (str(tmp_path / "a"), str(tmp_path / "b/*.txt"))
    assert plan.corpus.evaluate == (str(tmp_path / "v"),)
    assert (plan.base, plan.tokenizer.path) == (str(tmp_path / "old"), "gpt2")
    changed = load_plan(path, {"corpus.train": "[here]", "train.learning_rate": "3e-4"})
    assert changed.corpus.train == ("here",)
    assert changed.corpus.evaluate == plan.corpus.evaluate
    assert changed.train.learning_rate == 3e-4
    path.write_text("corpus: {path: some/set, train: train}")
    assert (load_plan(path).corpus.path, load_plan(path).corpus.train) == ("some/set", ("train",))
    path.write_text("corpus: {path: old, train: train, shards: kept}")
    corpus = load_plan(path, {"corpus.revision": "main"}).corpus
    assert (corpus.path, corpus.shards) == (str(tmp_path / "old"), str(tmp_path / "kept"))
    assert load_plan(path, {"corpus.shards": "here"}).corpus.shards == "here"
    monkeypatch.setenv("HOME", "/home/me")
    path.write_text("corpus: {train: ~/texts, shards: ~/shards}\ntokenizer: {path: ~/words}\n")
    plan = load_plan(path)
    assert plan.corpus.train == ("/home/me/texts",)
    assert (plan.corpus.shards, plan.tokenizer.path) == ("/home/me/shards", "/home/me/words")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corpus: {train: a}\ntrian: {}", r"mine.yaml, line 2: unknown key 'trian'"),
        ("corpus: {train: a}\ntrain:\n  epoch: 3", r"line 3: unknown key 'train.epoch'\n.*epochs"),
        ("train: {}", "corpus is missing"),
        ("corpus: {train: a}\nshape: {width: 10, heads: 3}", "line 2: shape: width 10 is not"),
        ("task: {format: classification}", "this is a recipe, not a plan"),
    ],
)
def test_errors_name_the_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_plan(path)


def test_overriding_epochs_replaces_the_updates_of_a_plan(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("corpus: {train: a}\ntrain: {epochs: 9, updates: 5}")
    assert load_plan(path).train.updates == 5
    assert load_plan(path, {"train.updates": 3}).train.updates == 3
    train = load_plan(path, {"train.epochs": 2}).train
    assert (train.epochs, train.updates) == (2, None)


def test_an_unknown_plan_suggests_the_nearest_name():
    with pytest.raises(UsageError, match=r"'tinny'.*\n.*'tiny'"):
        load_plan("tinny")
    with pytest.raises(UsageError, match="no such file"):
        load_plan("tiny.yaml")
