"""`gptft preview`: tokens laid over their texts, marked as training marks them."""

import re
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.cli import main
from finetune.cli.token_preview import render_view, summarize
from finetune.models.pretrained import load_task_tokens
from finetune.models.token_views import list_templates, make_token_views
from finetune.recipe.schema import BaseConfig, DataConfig, Recipe
from task_formats import FORMATS, Classes, Example, Format, Task, ViewEncoder
from task_formats.windows import Windows
from tests.support import families
from tests.support.jobs import TASKS, rows, write_rows

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return families.make("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def task_tokens(base):
    return load_task_tokens(BaseConfig(path=str(base)))


def views(task_tokens, example, task, max_tokens=512, lm=True):
    specials = task_tokens.special_tokens
    encoder = ViewEncoder(task.format, task_tokens.tokenize, specials, max_tokens, task.windows)
    [encoded] = encoder.encode([example])
    return encoded, make_token_views(example, encoded, task, task_tokens, max_tokens, with_lm=lm)


def task(format, names, labels=("a", "b", "c")):
    return Task(format, {name: name for name in names}, Classes.of(labels))


PAIR = task(FORMATS["entailment"], ["premise", "hypothesis", "label"])
MIRRORED = task(FORMATS["similarity"], ["first", "second", "label"])
CHOICE = task(FORMATS["multiple_choice"], ["context", "choices", "label"])


def text_of(view, template_index):
    """The text of a template, put together again: kept, of further windows, and removed."""
    places = [n for n, t in enumerate(view.tokens) if t.template_index == template_index]
    stop = places[-1] + 1
    rest = "".join(parts.get(stop, (0, ""))[1] for parts in (view.later, view.removed))
    return "".join(view.tokens[n].text for n in places) + rest


@settings(max_examples=50)
@given(texts, texts)
def test_tokens_and_what_was_cut_make_up_the_texts(task_tokens, premise, hypothesis):
    example = Example("x/0", {"premise": premise, "hypothesis": hypothesis}, label=1)
    for most in (7, 512):
        encoded, [view] = views(task_tokens, example, PAIR, most)
        for index, text in enumerate((premise, hypothesis)):
            assert text_of(view, index) == text
        assert len(view.tokens) == len(encoded.prefix) + len(encoded.endings[0])
        removed = [count for count, _ in view.removed.values()]
        assert (
            max(removed, default=0) if premise == hypothesis else sum(removed)
        ) == encoded.truncated_tokens


@settings(max_examples=50)
@given(texts, texts)
def test_what_further_windows_read_is_not_removed(task_tokens, premise, hypothesis):
    example = Example("x/0", {"premise": premise, "hypothesis": hypothesis}, label=1)
    windowed = replace(PAIR, windows=Windows(stride=2, most=4))
    encoded, [view, *_] = views(task_tokens, example, windowed, 9)
    for index, text in enumerate((premise, hypothesis)):
        assert text_of(view, index) == text
    assert bool(view.later) == (encoded.windows > 1)
    if premise != hypothesis:
        assert sum(count for count, _ in view.removed.values()) == encoded.truncated_tokens
    later = sum(count for count, _ in view.later.values())
    assert (f"{later} more in further windows" in summarize(view)) == bool(view.later)


def test_the_head_reads_at_e_and_all_but_s_carry_lm_loss(task_tokens):
    example = Example("x/0", {"context": "It rained."}, ("It is wet.", "Dry."), 0)
    for lm in (True, False):
        _, both = views(task_tokens, example, CHOICE, lm=lm)
        assert len(both) == 2
        for view in both:
            tokens = view.tokens
            assert [token.is_read for token in tokens] == [False] * (len(tokens) - 1) + [True]
            assert [token.is_lm_target for token in tokens] == [False] + [lm] * (len(tokens) - 1)
            assert (tokens[0].text, tokens[-1].text) == ("S", "E")
            assert f"{len(tokens)} tokens, head reads token {len(tokens)}" in summarize(view)


def test_a_text_keeps_its_colour_in_the_mirrored_view(task_tokens):
    example = Example("x/0", {"first": "one cat", "second": "a dog"}, label=0)
    _, [one, other] = views(task_tokens, example, MIRRORED)
    for view, order in ((one, [None, 0, None, 1, None]), (other, [None, 1, None, 0, None])):
        assert [index for index, _ in groupby(t.template_index for t in view.tokens)] == order
    assert list_templates(MIRRORED.format) == ["{first}", "{second}"]


def test_a_piece_that_is_cut_is_cut_where_it_stands(task_tokens):
    own_views = Format((("{story}\n{question}", "{answer}"),))
    own = task(own_views, ["story", "question", "answer", "label"])
    fields = {"story": "the cat sat on the mat " * 20, "question": "Who sat?", "answer": "cat"}
    _, [view] = views(task_tokens, Example("x/0", fields, label=0), own, max_tokens=40)
    [(place, (count, _))] = view.removed.items()
    assert "".join(token.text for token in view.tokens[place:]).startswith("\nWho sat?D")
    plain = render_view(view).plain
    assert plain.index(f"<-{count}:") < plain.index("W|") < plain.index("[D]")


def test_no_text_is_lost(task_tokens):
    fields = {"premise": "[bold]the cat[/bold]\tsat", "hypothesis": "on\nthe mat"}
    _, [view] = views(task_tokens, Example("x/0", fields, label=0), PAIR, 512)
    joined = render_view(view).plain.replace("|", "")
    assert joined == "[S] [bold]the cat[/bold]⇥sat [D] on⏎the mat [E] "


@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_is_shown(kind, base, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write_rows(tmp_path / "rows.jsonl", rows(kind, 5))
    data_config, base_config = DataConfig(train=data, evaluate=None), BaseConfig(path=str(base))
    recipe = Recipe(task=TASKS[kind], base=base_config, data=data_config)
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml())
    assert main(["preview", "mine.yaml", "--rows", "2", "--max-tokens", "40"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^train/\d", text, re.MULTILINE) == ["train/0", "train/1"]
    shown = [line for line in text.splitlines() if line.startswith("[S] ") and "start" not in line]
    assert len(shown) == len(re.findall(r"^view \d of \d", text, re.MULTILINE)) >= 2
    assert "(correct)" in text or kind != "multiple_choice"
    assert main(["preview", "mine.yaml", "--split", "evaluate"]) == 2
