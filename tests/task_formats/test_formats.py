"""The four formats of the paper, and custom views."""

import pytest

from task_formats import FORMATS, Example, Format, UsageError, named_format


def test_the_four_formats_are_those_of_the_paper() -> None:
    assert {name: kind.views for name, kind in FORMATS.items()} == {
        "classification": (("{text}",),),
        "entailment": (("{premise}", "{hypothesis}"),),
        "similarity": (("{first}", "{second}"), ("{second}", "{first}")),
        "multiple_choice": (("{context}", "{choice}"),),
    }
    assert [name for name, kind in FORMATS.items() if kind.is_multiple_choice] == [
        "multiple_choice"
    ]


def test_custom_views_mix_fields_and_words() -> None:
    own = Format((("{title}: {body}", "{body}", "is it {title}?"), ("{body}",)))
    assert own.fields == ("title", "body")
    assert not own.is_multiple_choice
    example = Example("a/0", {"title": "{body}", "body": "B"})
    assert own.render(example) == [
        (("{body}", ": B"), ("B",), ("is it {body}", "?")),
        (("B",),),
    ]


def test_a_choice_can_be_part_of_a_segment() -> None:
    own = Format((("Q: {question}", "A: {choice}."),))
    assert own.is_multiple_choice
    assert own.fields == ("question",)
    views = own.render(Example("a/0", {"question": "?"}, ("x", "y")))
    assert views == [(("Q: ?",), ("A: x", ".")), (("Q: ?",), ("A: y", "."))]


@pytest.mark.parametrize(
    ("views", "fault"),
    [
        ((), "needs views"),
        (((),), "needs views"),
        ((("{a}",), ()), "needs views"),
        ((("plain words",),), "contains no field"),
        ((("{{a}}",),), "contains no field"),
        ((("{a",),), "braces"),
        ((("{a}", "{choice}"), ("{a}",)), "exactly one view"),
        ((("{a} {label}",),), "reserved name 'label'"),
        ((("{choices}",),), "reserved name 'choices'"),
    ],
)
def test_invalid_views_are_errors(views, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        Format(views)


def test_the_error_for_an_unknown_format_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'multiple_choice'"):
        named_format("multiple-choice")
    assert named_format("entailment") is FORMATS["entailment"]
