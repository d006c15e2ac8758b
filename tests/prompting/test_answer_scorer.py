"""Log-likelihoods of answers equal those of one sequence at a time, however they are batched."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from finetune.batching.sampler import BatchConfig
from finetune.distributed.setup import create_accelerator
from finetune.models.attention.interface import ATTENTION_NAME
from finetune.models.decoder import DecoderWrapper
from finetune.models.pretrained import load_language_model
from finetune.prompting import answer_scorer
from finetune.prompting.answer_scorer import (
    AnswerScorer,
    collate_answers,
    find_prefix_groups,
    required_inputs,
)
from finetune.recipe.schema import BaseConfig
from finetune.training.loop import count_tokens
from task_formats import Encoded
from tests.support.families import FAMILIES

POSITIONS, VOCABULARY = 96, 200
TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=12)
REQUESTS = st.lists(
    st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=8
).map(lambda pairs: [Encoded(str(n), p, tuple(e)) for n, (p, e) in enumerate(pairs)])


def make_requests(shared_tokens: int = 0) -> list[Encoded]:
    """Ragged answers of one to six tokens; contexts of one token up to all positions."""
    draw = np.random.default_rng(7)
    common = draw.integers(5, VOCABULARY, shared_tokens).tolist()

    def text(length: int) -> list[int]:
        return draw.integers(5, VOCABULARY, length).tolist()

    requests = []
    for n, length in enumerate([1, 4, 9, 17, POSITIONS]):
        endings = [text(int(draw.integers(1, 7))) for _ in range(draw.integers(1, 5))]
        # The last token of an answer is predicted and never an input.
        longest = POSITIONS + 1 - max(map(len, endings)) - shared_tokens
        context = common + text(min(length, longest))
        requests.append(Encoded(f"x/{n}", context, tuple(endings)))
    prefix = common + text(11)
    requests.append(Encoded("x/single", prefix, tuple(text(1) for _ in range(4))))
    requests.append(Encoded("x/again", prefix, requests[0].endings))
    requests.append(Encoded("x/alike", prefix, ((7, 8, 9), (7, 8, 6), (7,), (7, 8, 9))))
    return [*requests, requests[2]]


def score_separately(folder, requests: list[Encoded]) -> list[list[float]]:
    """Each context with each answer alone, through transformers."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    found = []
    for request in requests:
        scores = []
        for ending in request.endings:
            text = torch.tensor([[*request.prefix, *ending][:-1]])
            with torch.no_grad():
                logits = model.eval()(text).logits[0].double().log_softmax(-1)
            rows = logits[len(request.prefix) - 1 :]
            scores.append(sum(float(row[token]) for row, token in zip(rows, ending, strict=True)))
        found.append(scores)
    return found


def make_scorer(folder, max_tokens: int, layout: str | None = None) -> AnswerScorer:
    decoder, _ = load_language_model(BaseConfig(path=str(folder), dropout=None))
    packs = decoder.config._attn_implementation == ATTENTION_NAME
    batch_config = BatchConfig(layout or ("packed" if packs else "separate"), 0, max_tokens)
    return AnswerScorer(decoder, batch_config, create_accelerator("fp32", "cpu"))


def assert_scores(found: np.ndarray, expected: list[list[float]]) -> None:
    for row, scores in zip(found, expected, strict=True):
        assert row[: len(scores)] == pytest.approx(scores, rel=1e-5, abs=1e-4)
        assert np.all(row[len(scores) :] == -np.inf)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared_tokens", [0, 60])
def test_batched_answers_score_as_one_at_a_time(bases, family, shared_tokens, monkeypatch):
    monkeypatch.setattr(answer_scorer, "MIN_SAVED_TOKENS", 30)
    requests = make_requests(shared_tokens)
    if shared_tokens:
        assert find_prefix_groups(requests)[0].length >= shared_tokens
    expected = score_separately(bases(family), requests)
    for limit in (1, 70, 10_000):
        assert_scores(make_scorer(bases(family), limit).log_likelihoods(requests), expected)


@pytest.mark.parametrize("layout", ["separate", "shared", "packed"])
def test_every_layout_gives_the_same_scores(bases, layout, monkeypatch):
    monkeypatch.setattr(answer_scorer, "MIN_SAVED_TOKENS", 30)
    for shared_tokens in (0, 60):
        requests = make_requests(shared_tokens)
        found = make_scorer(bases("gpt2"), 150, layout).log_likelihoods(requests)
        assert_scores(found, score_separately(bases("gpt2"), requests))


def test_a_shared_beginning_is_read_once(bases, monkeypatch):
    """Counts tokens at the first layer: the shared beginning, then the rest of each request."""
    monkeypatch.setattr(answer_scorer, "MIN_SAVED_TOKENS", 30)
    requests = make_requests(60)
    scorer = make_scorer(bases("gpt2"), 10_000)
    read = []
    scorer._model.backbone.decoder.transformer.h[0].register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].shape[1])
    )
    scorer.log_likelihoods([*requests, *requests])
    different = requests[:-1]
    assert read == [60, sum(required_inputs(request, 60).tokens for request in different)]


def test_the_last_token_of_an_answer_is_not_read_and_equal_stems_are_read_once():
    batch = collate_answers([Encoded("x", [1, 2, 3], ((4,), (5,)))], "packed")
    assert (batch.tokens.tolist(), batch.lm_index.tolist()) == ([[1, 2, 3]], [2, 2])
    request = Encoded("x", [1, 2], ((8, 9, 3), (8, 9, 4), (8, 5), (6,)))
    batch = collate_answers([request], "packed")
    assert batch.tokens.tolist() == [[1, 2, 8, 9, 8]]
    assert batch.lm_index.tolist() == [1, 2, 3, 1, 2, 3, 1, 4, 1]
    assert batch.lm_target.tolist() == [8, 9, 3, 8, 9, 4, 8, 5, 6]
    assert batch.target_view.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3]


@given(REQUESTS, st.sampled_from(["separate", "shared", "packed"]), st.integers(0, 3))
def test_every_target_is_predicted_from_the_token_before_it(requests, layout, cached):
    requests = [r._replace(prefix=[9] * cached + list(r.prefix)) for r in requests]
    batch = collate_answers(requests, layout, cached_tokens=cached)
    tokens, positions = batch.tokens.flatten().tolist(), batch.position_ids.flatten().tolist()
    views = max(len(request.endings) for request in requests)
    for view in range(len(requests) * views):
        n, k = divmod(view, views)
        mine = [m for m, other in enumerate(batch.target_view.tolist()) if other == view]
        assert (batch.last_index[n, k] >= 0) == (k < len(requests[n].endings)) == bool(mine)
        if not mine:
            continue
        prefix, ending = requests[n].prefix, requests[n].endings[k]
        assert [batch.lm_target[m].item() for m in mine] == list(ending)
        sources = [batch.lm_index[m].item() for m in mine]
        assert [tokens[source] for source in sources] == [prefix[-1], *ending[:-1]]
        first = len(prefix) - 1
        assert [positions[source] for source in sources] == [*range(first, first + len(ending))]
        assert {batch.example_id.flatten()[source].item() for source in sources} == {n}


@given(REQUESTS)
def test_groups_share_their_beginning_and_hold_every_request_once(requests):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_scorer, "MIN_SAVED_TOKENS", 3)
        groups = find_prefix_groups(requests)
    assert sorted(int(n) for group in groups for n in group.requests) == list(range(len(requests)))
    for group in groups:
        prefixes = {tuple(requests[n].prefix[: group.length]) for n in group.requests}
        assert len(prefixes) == 1 or group.length == 0
        assert all(group.length < len(requests[n].prefix) for n in group.requests)


def test_requests_that_share_one_beginning_make_one_group():
    sharing = [Encoded(str(n), [*range(400), 500 + n], ((1,),)) for n in range(5)]
    others = [Encoded(f"o{n}", [1000 + n] * 50, ((1,),)) for n in range(3)]
    shared, alone = find_prefix_groups([*others, *sharing])
    assert (shared.length, sorted(shared.requests.tolist())) == (400, [3, 4, 5, 6, 7])
    assert (alone.length, sorted(alone.requests.tolist())) == (0, [0, 1, 2])


def test_scores_are_computed_without_dropout(bases):
    decoder, _ = load_language_model(BaseConfig(path=str(bases("gpt2")), dropout=0.5))
    scorer = AnswerScorer(decoder, BatchConfig("packed", 0, 500), create_accelerator("fp32", "cpu"))
    requests = make_requests()
    assert np.array_equal(scorer.log_likelihoods(requests), scorer.log_likelihoods(requests))
    assert_scores(scorer.log_likelihoods(requests), score_separately(bases("gpt2"), requests))


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt"])
def test_out_of_memory_splits_batches(bases, monkeypatch, family: str):
    requests = [part for n in range(3) for part in make_requests(n)]
    scorer = make_scorer(bases(family), 2000)
    expected, read = scorer.log_likelihoods(requests), DecoderWrapper.hidden_states
    failed, fitted = [], []

    def read_or_fail(self, batch, *rest):
        (failed if count_tokens(batch) > 450 else fitted).append(count_tokens(batch))
        if failed and failed[-1] == count_tokens(batch):
            raise torch.OutOfMemoryError("out of memory")
        return read(self, batch, *rest)

    monkeypatch.setattr(DecoderWrapper, "hidden_states", read_or_fail)
    for _ in range(2):
        found = scorer.log_likelihoods(requests)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    # The smaller limit is kept: the second call does not fail again.
    assert 0 < len(failed) < 3
    assert len(fitted) >= 6
