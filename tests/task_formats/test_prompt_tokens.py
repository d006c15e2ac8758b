"""Prompts in tokens: demonstrations, questions, answers and truncation."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_formats import Classes, Example, Prompt, Range, Task, UsageError, named_format
from task_formats.demonstrations import Demonstrations
from task_formats.prompt_tokens import (
    AnswerTokenizer,
    PromptEncoder,
    Question,
    _answer_index,
    answer_values,
)

RTE = Task(
    named_format("entailment"),
    {"premise": "p", "hypothesis": "h", "label": "l"},
    Classes.of({0: "entailment", 1: "not_entailment"}),
    prompt=Prompt(
        "{premise}\nquestion: {hypothesis} True or False?\nanswer:",
        {"not_entailment": " False", "entailment": " True, quite true"},
    ),
)
RACE = Task(
    named_format("multiple_choice"),
    {"context": "c", "choices": "o", "label": "l"},
    Classes.of("ABCD"),
    prompt=Prompt("{context}\nA:", " {choice}", separator="\n"),
)
WORDS = st.text("ab. ", min_size=1, max_size=12).map(str.strip).filter(bool)
PAIRS = st.builds(lambda p, h: {"premise": p, "hypothesis": h}, WORDS, WORDS)


def spell(texts: Sequence[str]) -> list[list[int]]:
    """Tokens like those of byte-level BPE: a blank joins the word after it, and so does "ab"."""
    found = []
    for text in texts:
        ids, at = [], 0
        while at < len(text):
            size = 2 if text[at : at + 2] in ("ab", " a", " T", "tr", ". ", "::") else 1
            ids.append(sum(ord(letter) * 256**k for k, letter in enumerate(text[at : at + size])))
            at += size
        found.append(ids)
    return found


def read(ids: Sequence[int]) -> str:
    return "".join(chr(n % 256) + (chr(n // 256) if n > 255 else "") for n in ids)


def expected_request(context: str, answer: str, limit: int) -> tuple[list[int], list[int]]:
    """One request as lm-evaluation-harness 0.4 makes it, written from its behaviour."""
    blanks = len(context) - len(context.rstrip())
    if blanks:
        context, answer = context[:-blanks], context[-blanks:] + answer
    context_ids, whole = spell([context, context + answer])
    answer_ids = whole[len(context_ids) :]
    both = (context_ids + answer_ids)[-(limit + 1) :]
    return both[: len(both) - len(answer_ids)], answer_ids


def views(question: Question) -> list[tuple[list[int], list[int]]]:
    """(context, answer) of every answer, in order."""
    return [
        (list(question.groups[part].prefix), list(question.groups[part].endings[ending]))
        for part, ending in question.answer_positions
    ]


def examples(rows: Sequence[dict[str, str]], split: str = "train") -> list[Example]:
    return [Example(f"{split}/{n}", row, label=n % 2) for n, row in enumerate(rows)]


POOL = examples([{"premise": f"p{n}", "hypothesis": f"h{n % 7}"} for n in range(40)])


def encoder(task=RTE, limit=10_000, pool=POOL, shots=0, **kwargs) -> PromptEncoder:
    return PromptEncoder(task, AnswerTokenizer(spell), limit, Demonstrations(pool, shots, **kwargs))


def prompted(context: str, answer: str) -> list[tuple[list[int], list[int]]]:
    return expected_request(context, answer, 10_000)


def test_zero_shot_is_the_question_and_its_answers_in_the_order_of_the_labels():
    question = encoder().encode([Example("dev/3", {"premise": "a", "hypothesis": "b"}, label=1)])[0]
    text = "a\nquestion: b True or False?\nanswer:"
    assert views(question) == [prompted(text, " True, quite true"), prompted(text, " False")]
    assert (question.id, question.label) == ("dev/3", 1)
    assert (question.shots, question.truncated_tokens) == (0, 0)
    assert question.text_bytes == (16, 5)
    assert question.token_counts == tuple(len(answer) for _, answer in views(question))
    assert len(question.groups) == 1


def test_few_shot_is_demonstrations_then_the_question():
    asked = Example("dev/0", {"premise": "a", "hypothesis": "b"}, label=0)
    made = encoder(shots=3, seed=5)
    solved = made.demonstrations.draw(asked)
    answers = [" True, quite true", " False"]
    text = "\n\n".join(
        f"{e.fields['premise']}\nquestion: {e.fields['hypothesis']} True or False?\nanswer:"
        + answers[e.label]
        for e in solved
    )
    text += "\n\na\nquestion: b True or False?\nanswer:"
    question = made.encode([asked])[0]
    assert views(question) == [prompted(text, answer) for answer in answers]
    assert (question.shots, question.dropped) == (3, 0)


def test_choices_are_answers_and_their_number_may_differ():
    asked = [
        Example("t/0", {"context": "who"}, ("ab", "b b b"), 1),
        Example("t/1", {"context": "why"}, ("a", "tr", "b", "ab ab ab."), 3),
    ]
    pool = [Example(f"p/{n}", {"context": f"q{n}"}, ("x", f"y{n}"), 1) for n in range(4)]
    found = encoder(RACE, pool=pool, shots=2, shared=True).encode(asked)
    for example, question in zip(asked, found, strict=True):
        solved = Demonstrations(pool, 2, shared=True).draw(example)
        before = "".join(f"{e.fields['context']}\nA: {e.choices[1]}\n" for e in solved)
        context = f"{before}{example.fields['context']}\nA:"
        assert views(question) == [prompted(context, f" {c}") for c in example.choices]


@given(
    st.lists(PAIRS, min_size=1, max_size=3), st.integers(24, 90), st.integers(0, 5), st.booleans()
)
def test_demonstrations_that_do_not_fit_are_dropped_whole_the_first_ones_first(
    rows, limit, shots, shared
):
    made = encoder(limit=limit, shots=shots, shared=shared)
    answers = [" True, quite true", " False"]
    for asked, question in zip(
        examples(rows, "dev"), made.encode(examples(rows, "dev")), strict=True
    ):
        solved = [made._solve(example) for example in made.demonstrations.draw(asked)]
        assert question.shots + question.dropped == shots == len(solved)
        contexts = [
            "\n\n".join([*solved[shots - k :], RTE.prompt.question(asked)])
            for k in range(shots + 1)
        ]

        def fits(k, contexts=contexts):
            return max(len(spell([contexts[k] + a])[0]) for a in answers) <= limit + 1

        assert all(fits(k) for k in range(1, question.shots + 1))
        assert question.shots == shots or not fits(question.shots + 1)
        context = contexts[question.shots]
        assert views(question) == [expected_request(context, a, limit) for a in answers]
        excess = max(len(spell([context + a])[0]) for a in answers) - limit - 1
        assert question.truncated_tokens == max(0, excess)
        assert all(len(c) + len(a) <= limit + 1 and c for c, a in views(question))


@given(
    st.text("ab T:.\n ", max_size=20),
    st.lists(st.text("ab Ttr:. ", min_size=1, max_size=6), min_size=1),
)
def test_contexts_and_answers_are_split_as_in_lm_evaluation_harness(context, answers):
    tokens = AnswerTokenizer(spell, empty_id=7).encode([(context, answers)])[0]
    for answer, found in zip(answers, tokens.answers, strict=True):
        if not context.strip():
            assert (tokens.context, read(found)) == ([7], context + answer)
            continue
        before, after = expected_request(context, answer, 10_000)
        blanks = context[len(context.rstrip()) :]
        # The harness fails if no token is left for an answer.
        assert (tokens.context, found) == (before, after or spell([blanks + answer])[0])


def test_contexts_begin_with_the_start_tokens_and_an_empty_one_is_the_empty_token():
    tokenizer = AnswerTokenizer(spell, start_ids=[1, 2], empty_id=ord("Q"))
    assert tokenizer.encode([("b", ["b"])])[0] == ([1, 2, ord("b")], [[ord("b")]])
    assert tokenizer.encode([("", ["Qb", "b"])])[0] == ([ord("Q")], [[ord("b")], [ord("b")]])
    with pytest.raises(UsageError, match="no tokens"):
        tokenizer.encode([("b", [""])])


def test_an_answer_longer_than_the_context_window_is_an_error():
    asked = [Example("t/7", {"context": "who"}, ("ab", "b" * 30), 0)]
    assert encoder(RACE, limit=31).encode(asked)[0].truncated_tokens == 4 + 2 - 1
    with pytest.raises(UsageError, match="t/7: an answer has 31 tokens, more than"):
        encoder(RACE, limit=30).encode(asked)


def test_a_task_without_a_prompt_is_an_error():
    with pytest.raises(UsageError, match="no prompt"):
        encoder(Task(named_format("classification"), {"text": "t"}, Classes.of(["a", "b"])))


def test_the_prior_is_the_whole_context_and_loses_its_blank():
    asked = POOL[:2]
    for question in encoder(shots=3).encode_prior(asked):
        assert views(question) == [prompted("Answer:", a) for a in (" True, quite true", " False")]
        assert question.shots == 0


def test_content_free_questions_follow_the_same_demonstrations():
    made = encoder(shots=6, limit=260)
    asked = POOL[:5]
    questions = made.encode(asked)
    assert 0 < max(q.dropped for q in questions) < 6
    free = made.encode_content_free(asked, questions, "N/A")
    for one, question, example in zip(free, questions, asked, strict=True):
        end = len(read(question.groups[0].prefix)) - len(RTE.prompt.question(example))
        before = read(question.groups[0].prefix)[:end]
        assert read(one.groups[0].prefix) == (before + "N/A\nquestion: N/A True or False?\nanswer:")
        assert one.shots == question.shots


def test_answers_of_a_score_task_stand_for_values():
    task = Task(
        named_format("similarity"),
        {"first": "a", "second": "b", "label": "l"},
        Range(0, 5),
        prompt=Prompt("{first} {second}", {"5": " five", "0": " none", "2.5": " half"}),
    )
    assert answer_values(task.prompt) == (0.0, 2.5, 5.0)
    assert task.prompt.answer_texts(POOL[0]) == (" none", " half", " five")
    nearest = [_answer_index(task, Example("x", {}, label=score)) for score in (0.0, 1.2, 1.3, 4)]
    assert nearest == [0, 0, 1, 2]


FIELDS = st.integers(0, 5).map(lambda n: {"premise": f"p{n}", "hypothesis": "h"})


@given(
    st.lists(FIELDS, min_size=1, max_size=30), st.integers(0, 4), st.integers(0, 9), st.booleans()
)
def test_demonstrations_are_distinct_other_examples_and_reproducible(rows, shots, seed, shared):
    pool = examples(rows)
    distinct = {row["premise"] for row in rows}
    if 0 < shots > len(distinct) - 1:
        with pytest.raises(UsageError, match=f"{shots} shots need {shots + 1}"):
            Demonstrations(pool, shots, seed, shared)
        return
    made, again = (Demonstrations(pool, shots, seed, shared) for _ in range(2))
    for asked in [*pool, Example("dev/0", rows[0])]:
        drawn = made.draw(asked)
        assert drawn == again.draw(asked)
        shown = [example.fields["premise"] for example in drawn]
        assert len(set(shown)) == len(shown) == shots
        assert asked.fields["premise"] not in shown


def test_shared_demonstrations_are_the_same_for_all_questions_outside_the_pool():
    made = Demonstrations(POOL, 4, seed=1, shared=True)
    draws = {example.id: made.draw(example) for example in POOL}
    usual = made.draw(Example("dev/0", {"premise": "new", "hypothesis": "new"}))
    for example in POOL:
        rest = tuple(one for one in usual if one.id != example.id)
        assert draws[example.id][: len(rest)] == rest
        assert (draws[example.id] == usual) == (example not in usual)


def test_unshared_demonstrations_differ_between_questions_and_seeds():
    own = Demonstrations(POOL, 4, seed=1)
    drawn = {tuple(one.id for one in own.draw(example)) for example in POOL}
    assert len(drawn) == len(POOL)
    assert Demonstrations(POOL, 4, seed=2).draw(POOL[0]) != own.draw(POOL[0])


def test_only_labelled_examples_are_demonstrations():
    pool = [Example(f"p/{n}", {"premise": str(n), "hypothesis": ""}) for n in range(9)]
    with pytest.raises(UsageError, match="there are 0"):
        Demonstrations(pool, 1)
    assert Demonstrations(pool, 0).draw(POOL[0]) == ()
