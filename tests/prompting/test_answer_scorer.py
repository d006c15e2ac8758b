"""Log-likelihoods of answers: whatever is read together, those of one sequence at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from finetune.distributed.setup import create_accelerator
from finetune.evaluation.evaluate import BatchConfig
from finetune.models.attention.interface import ATTENTION_NAME
from finetune.models.pretrained import load_language_model
from finetune.models.task_model import DecoderWrapper
from finetune.prompting import prefix_groups as trunks
from finetune.prompting.answer_batches import collate_answers, trim
from finetune.prompting.answer_scorer import AnswerScorer
from finetune.prompting.prefix_groups import find_prefix_groups
from finetune.recipe.schema import BaseConfig
from finetune.training.loop import count_tokens
from task_formats import Encoded
from tests.support.families import FAMILIES

POSITIONS = 96
TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=12)
REQUESTS = st.lists(
    st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=8
).map(lambda pairs: [Encoded(str(n), p, tuple(e)) for n, (p, e) in enumerate(pairs)])


def requests(vocabulary: int, beginning: int = 0) -> list[Encoded]:
    """Ragged answers of one to six tokens; contexts of one token up to all positions."""
    draw = np.random.default_rng(7)
    common = draw.integers(5, vocabulary, beginning).tolist()

    def text(length: int) -> list[int]:
        return draw.integers(5, vocabulary, length).tolist()

    found = []
    for n, length in enumerate([1, 4, 9, 17, POSITIONS]):
        endings = [text(int(draw.integers(1, 7))) for _ in range(draw.integers(1, 5))]
        # What fits to the last token, which is predicted and never read.
        room = POSITIONS + 1 - max(map(len, endings)) - beginning
        found.append(Encoded(f"x/{n}", common + text(min(length, room)), tuple(endings)))
    prefix = common + text(11)
    found.append(Encoded("x/single", prefix, tuple(text(1) for _ in range(4))))
    found.append(Encoded("x/again", prefix, found[0].endings))
    found.append(Encoded("x/alike", prefix, ((7, 8, 9), (7, 8, 6), (7,), (7, 8, 9))))
    return [*found, found[2]]


def one_by_one(folder, asked: list[Encoded]) -> list[list[float]]:
    """Each context with each answer alone through transformers' own model, as plain as can be."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    found = []
    for request in asked:
        scores = []
        for ending in request.endings:
            text = torch.tensor([[*request.prefix, *ending][:-1]])
            with torch.no_grad():
                logits = model.eval()(text).logits[0].double().log_softmax(-1)
            rows = logits[len(request.prefix) - 1 :]
            scores.append(sum(float(row[token]) for row, token in zip(rows, ending, strict=True)))
        found.append(scores)
    return found


def scorer(folder, budget: int, layout: str | None = None) -> AnswerScorer:
    decoder, _ = load_language_model(BaseConfig(path=str(folder), dropout=None))
    packs = decoder.config._attn_implementation == ATTENTION_NAME
    batch_config = BatchConfig(layout or ("packed" if packs else "separate"), 0, budget)
    return AnswerScorer(decoder, batch_config, create_accelerator("fp32", "cpu"))


def assert_as_likely(found: np.ndarray, expected: list[list[float]]) -> None:
    for row, scores in zip(found, expected, strict=True):
        assert row[: len(scores)] == pytest.approx(scores, rel=1e-5, abs=1e-4)
        assert np.all(row[len(scores) :] == -np.inf)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beginning", [0, 60])
def test_answers_are_as_likely_as_one_at_a_time(bases, family, beginning, monkeypatch):
    monkeypatch.setattr(trunks, "MIN_SHARED_TOKENS", 30)
    asked = requests(200, beginning)
    if beginning:
        assert find_prefix_groups(asked)[0].length >= beginning
    expected = one_by_one(bases(family), asked)
    for budget in (1, 70, 10_000):
        assert_as_likely(scorer(bases(family), budget).score(asked), expected)


@pytest.mark.parametrize("layout", ["separate", "shared", "packed"])
def test_every_layout_gives_the_same(bases, layout, monkeypatch):
    monkeypatch.setattr(trunks, "MIN_SHARED_TOKENS", 30)
    for beginning in (0, 60):
        asked = requests(200, beginning)
        found = scorer(bases("gpt2"), 150, layout).score(asked)
        assert_as_likely(found, one_by_one(bases("gpt2"), asked))


def test_a_common_beginning_is_read_once(bases, monkeypatch):
    """Tokens through the first layer: the beginning, and what is new of each different request."""
    monkeypatch.setattr(trunks, "MIN_SHARED_TOKENS", 30)
    asked = requests(200, beginning=60)
    made = scorer(bases("gpt2"), 10_000)
    read = []
    made._model.backbone.decoder.transformer.h[0].register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].shape[1])
    )
    made.score([*asked, *asked])
    different = asked[:-1]
    assert read == [60, sum(trim(request, 60).tokens for request in different)]


def test_answers_of_one_token_cost_their_context_alone():
    request = Encoded("x", [1, 2, 3], ((4,), (5,), (6,), (7,)))
    batch = collate_answers([request], "packed")
    assert batch.tokens.tolist() == [[1, 2, 3]]
    assert batch.lm_index.tolist() == [2, 2, 2, 2]
    assert batch.lm_target.tolist() == [4, 5, 6, 7]
    assert batch.view.tolist() == [0, 1, 2, 3]


def test_answers_that_differ_in_their_last_token_alone_are_read_once():
    request = Encoded("x", [1, 2], ((8, 9, 3), (8, 9, 4), (8, 5), (6,)))
    batch = collate_answers([request], "packed")
    assert batch.tokens.tolist() == [[1, 2, 8, 9, 8]]
    assert batch.lm_index.tolist() == [1, 2, 3, 1, 2, 3, 1, 4, 1]
    assert batch.lm_target.tolist() == [8, 9, 3, 8, 9, 4, 8, 5, 6]
    assert batch.view.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3]


@given(REQUESTS, st.sampled_from(["separate", "shared", "packed"]), st.integers(0, 3))
def test_every_target_is_predicted_from_the_token_before_it(asked, layout, remembered):
    asked = [request._replace(prefix=[9] * remembered + list(request.prefix)) for request in asked]
    batch = collate_answers(asked, layout, remembered=remembered)
    tokens, place = batch.tokens.flatten().tolist(), batch.position_ids.flatten().tolist()
    views = max(len(request.endings) for request in asked)
    for view in range(len(asked) * views):
        n, k = divmod(view, views)
        mine = [m for m, other in enumerate(batch.view.tolist()) if other == view]
        assert (batch.last_index[n, k] >= 0) == (k < len(asked[n].endings)) == bool(mine)
        if not mine:
            continue
        prefix, ending = asked[n].prefix, asked[n].endings[k]
        assert [batch.lm_target[m].item() for m in mine] == list(ending)
        sources = [batch.lm_index[m].item() for m in mine]
        assert [tokens[source] for source in sources] == [prefix[-1], *ending[:-1]]
        first = len(prefix) - 1
        assert [place[source] for source in sources] == [*range(first, first + len(ending))]
        assert {batch.example.flatten()[source].item() for source in sources} == {n}


@given(REQUESTS)
def test_trunks_share_their_beginning_and_hold_every_request_once(asked):
    trunks.MIN_SHARED_TOKENS, usual = 3, trunks.MIN_SHARED_TOKENS
    try:
        found = find_prefix_groups(asked)
    finally:
        trunks.MIN_SHARED_TOKENS = usual
    assert sorted(int(n) for trunk in found for n in trunk.requests) == list(range(len(asked)))
    for trunk in found:
        beginnings = {tuple(asked[n].prefix[: trunk.length]) for n in trunk.requests}
        assert len(beginnings) == 1 or trunk.length == 0
        assert all(trunk.length < len(asked[n].prefix) for n in trunk.requests)


def test_requests_that_share_one_beginning_make_one_trunk():
    asked = [Encoded(str(n), [*range(400), 500 + n], ((1,),)) for n in range(5)]
    others = [Encoded(f"o{n}", [1000 + n] * 50, ((1,),)) for n in range(3)]
    shared, alone = find_prefix_groups([*others, *asked])
    assert (shared.length, sorted(shared.requests.tolist())) == (400, [3, 4, 5, 6, 7])
    assert (alone.length, sorted(alone.requests.tolist())) == (0, [0, 1, 2])


def test_scores_are_without_dropout_and_alike_every_time(bases):
    decoder, _ = load_language_model(BaseConfig(path=str(bases("gpt2")), dropout=0.5))
    made = AnswerScorer(decoder, BatchConfig("packed", 0, 500), create_accelerator("fp32", "cpu"))
    asked = requests(200)
    assert np.array_equal(made.score(asked), made.score(asked))
    assert_as_likely(made.score(asked), one_by_one(bases("gpt2"), asked))


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt"])
def test_out_of_memory_questions_are_asked_in_pieces(bases, monkeypatch, family: str):
    asked = [part for n in range(3) for part in requests(200, beginning=n)]
    made = scorer(bases(family), 2000)
    expected, read = made.score(asked), DecoderWrapper.hidden_states
    failed, fitted = [], []

    def read_or_fail(self, batch, *rest):
        (failed if count_tokens(batch) > 450 else fitted).append(count_tokens(batch))
        if failed and failed[-1] == count_tokens(batch):
            raise torch.OutOfMemoryError("out of memory")
        return read(self, batch, *rest)

    monkeypatch.setattr(DecoderWrapper, "hidden_states", read_or_fail)
    for _ in range(2):
        found = made.score(asked)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    # The smaller budget stays: the second time nothing was tried in vain.
    assert 0 < len(failed) < 3
    assert len(fitted) >= 6
