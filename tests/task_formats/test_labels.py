"""Labels: raw values, names, indices and predictions."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_formats import Classes, MultiLabel, Range, RowError, UsageError
from task_formats.labels import as_text

NLI = Classes.of({0: "entailment", 1: "neutral", 2: "contradiction"})
WORD = st.text("abcdefgh_", min_size=1, max_size=6)


@st.composite
def mappings(draw) -> dict[int, str]:
    """Raw numbers to names: several raw values may mean one class; no name looks like a number."""
    raw = draw(st.lists(st.integers(0, 99), min_size=2, max_size=6, unique=True))
    names = draw(st.lists(WORD, min_size=2, max_size=len(raw), unique=True))
    rest = draw(st.lists(st.sampled_from(names), min_size=len(raw), max_size=len(raw)))
    return dict(zip(raw, names + rest[len(names) :], strict=True))


@given(mappings())
def test_a_raw_value_comes_back_as_its_name(labels: dict[int, str]) -> None:
    classes = Classes.of(labels)
    assert classes.num_outputs == len(set(labels.values()))
    for raw, name in labels.items():
        index = classes.parse(raw)
        assert classes.name(index) == name
        assert classes.parse(name) == index
        certain = [10.0 if k == index else 0.0 for k in range(classes.num_outputs)]
        assert classes.decode("a/0", certain).label == name


@pytest.mark.parametrize("value", [1, 1.0, "1", " 1 ", np.int64(1), np.float32(1), "neutral"])
def test_one_label_has_many_spellings(value) -> None:
    assert NLI.parse(value) == 1


def test_a_list_of_names_is_its_own_raw_values() -> None:
    classes = Classes.of(["no", "yes"])
    assert (classes.parse("no"), classes.parse(" yes "), classes.names) == (0, 1, ("no", "yes"))


def test_booleans_are_labels_like_any_other() -> None:
    classes = Classes.of({True: "yes", False: "no"})
    assert classes.name(classes.parse(True)) == "yes"
    assert classes.name(classes.parse("False")) == "no"
    with pytest.raises(RowError):
        classes.parse(1)


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        ("entailmnt", "Did you mean 'entailment'"),
        (3, "Known: 0, 1, 2, contradiction, entailment, neutral"),
        (True, "task.labels"),
        (None, "Known: 0"),
        ([0], "task.labels"),
    ],
)
def test_the_error_for_an_unknown_label_suggests_the_nearest(value, cure: str) -> None:
    with pytest.raises(RowError, match="unknown label") as caught:
        NLI.parse(value)
    assert repr(value) in str(caught.value)
    assert cure in caught.value.cure


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ({0: "one"}, "at least two"),
        ({0: "one", 1: "one"}, "at least two"),
        ([], "at least two"),
        ({"0": "1", "1": "0"}, "name of another"),
        ({1: "a", "1": "b", 2: "c"}, "'1' is given twice"),
        (["a", "b", "a"], "'a' is given twice"),
        ({0: "a", 1: " "}, "empty name"),
    ],
)
def test_ambiguous_labels_are_errors(labels, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        Classes.of(labels)


@given(st.lists(st.floats(-50, 50), min_size=3, max_size=3))
def test_probabilities_are_the_softmax_of_the_logits(logits: list[float]) -> None:
    prediction = NLI.decode("a/0", logits)
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(prediction.scores, expected, rtol=1e-12)
    assert prediction.label == NLI.names[int(np.argmax(logits))]


def test_a_missing_choice_has_probability_zero() -> None:
    letters = Classes.of(["A", "B", "C"])
    assert letters.decode("a/0", [0.0, 0.0, -math.inf]).scores == (0.5, 0.5, 0.0)
    assert letters.decode("a/0", [1000.0, -1000.0]).scores == (1.0, 0.0)


# -- scores ----------------------------------------------------------------------------------------


@given(st.floats(0, 5))
def test_a_score_is_read_from_numbers_and_text(number: float) -> None:
    similarity = Range(0, 5)
    assert similarity.parse(number) == similarity.parse(f" {number!r} ") == number
    assert similarity.name(number) == number


@pytest.mark.parametrize("value", [-0.1, 5.1, "nan", math.nan, math.inf, "five", "", None, [1]])
def test_a_value_outside_the_range_is_an_error(value) -> None:
    with pytest.raises(RowError, match="from 0 to 5") as caught:
        Range(0, 5).parse(value)
    assert repr(value) in str(caught.value)


def test_a_predicted_score_is_not_clipped() -> None:
    assert Range(0, 5).decode("a/0", [7.25]).label == 7.25


@pytest.mark.parametrize("bounds", [(1, 1), (2, 1), (0, math.inf), (math.nan, 1)])
def test_a_range_goes_from_low_to_high(bounds) -> None:
    with pytest.raises(UsageError, match="low then high"):
        Range(*bounds)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (math.nan, ""), (np.float32("nan"), ""), (2.5, "2.5"), (-1.0, "-1"), (-7, "-7")],
)
def test_a_label_as_text(value, text: str) -> None:
    assert as_text(value) == text


def test_the_time_for_classes_grows_with_their_number():
    names = [f"class {k}" for k in range(40_000)]
    start = time.process_time()
    labels = Classes.of(names)
    assert labels.parse("class 39999") == 39_999
    assert time.process_time() - start < 4, "each name was compared with all others"


def test_a_long_text_in_the_label_column_is_shortened_in_the_message():
    for labels in (NLI, Range(0, 1)):
        with pytest.raises(RowError) as caught:
            labels.parse("It rained. " * 10_000)
        assert len(str(caught.value)) < 500


def test_an_error_with_a_cure_that_is_looked_for_can_be_pickled():
    import pickle  # noqa: TID251

    with pytest.raises(RowError) as caught:
        NLI.parse("neutrl")
    copied = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert str(copied) == str(caught.value)
    assert "Did you mean 'neutral'?" in copied.cure


# -- several labels --------------------------------------------------------------------------------

WEATHER = MultiLabel(Classes.of({0: "sun", 1: "rain", 2: "wind", 7: "snow"}))


@pytest.mark.parametrize(
    "value",
    [
        ["rain", "snow"],
        ("snow", 1),
        [1, 7],
        [1.0, 7.0],
        np.array([1, 7]),
        "rain, snow",
        "1,7",
        "['rain', 'snow']",
        '["snow", "rain"]',
        "[1, 7]",
        [0, 1, 0, 1],
        [False, True, False, True],
        np.array([0, 1, 0, 1]),
        "[0, 1, 0, 1]",
        {"rain": 1, "snow": "1", "sun": 0, "wind": ""} | {"wind": False},
        {"rain": True, "snow": "true", "sun": 0.0},
    ],
)
def test_several_labels_have_many_spellings(value) -> None:
    label = WEATHER.parse(value)
    assert label == (0.0, 1.0, 0.0, 1.0)
    assert WEATHER.name(label) == ("rain", "snow")


@pytest.mark.parametrize("value", [[], "[]", [0, 0, 0, 0], {"sun": 0}])
def test_no_label_may_apply(value) -> None:
    assert WEATHER.name(WEATHER.parse(value)) == ()


def test_a_separator_may_be_in_a_name() -> None:
    labels = MultiLabel(Classes.of(["New York, NY", "Boston"]), separator=";")
    assert labels.parse("Boston; New York, NY") == (1.0, 1.0)
    assert MultiLabel(labels.classes).parse("New York, NY") == (1.0, 0.0)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (["hail"], "unknown label 'hail'"),
        ("sun; rain", "unknown label 'sun; rain'"),
        ("[" * 100_000, "unknown label"),
        ([0, 1, 1], None),
        ({"sun": "maybe"}, "'maybe' in column 'sun' is not 0 or 1"),
        ({"sun": 0.3}, "0.3 in column 'sun' is not 0 or 1"),
    ],
)
def test_what_is_no_list_of_labels_is_an_error(value, fault) -> None:
    if fault is None:  # A label that is listed twice.
        assert WEATHER.name(WEATHER.parse(value)) == ("sun", "rain")
        return
    with pytest.raises(RowError, match=fault):
        WEATHER.parse(value)


@given(st.lists(st.floats(-800, 800), min_size=4, max_size=4))
def test_labels_are_predicted_from_their_thresholds(logits: list[float]) -> None:
    table = {"sun": 0.1, "rain": 0.5, "wind": 0.9, "snow": 0.0}
    prediction = WEATHER.with_thresholds(table).decode("a/0", logits)
    expected = 0.5 * (1 + np.tanh(np.array(logits) / 2))
    np.testing.assert_allclose(prediction.scores, expected, atol=1e-12)
    pairs = zip(WEATHER.names, prediction.scores, strict=True)
    assert prediction.label == tuple(name for name, score in pairs if score >= table[name])


@pytest.mark.parametrize("table", [{"sun": 0.5}, dict.fromkeys(WEATHER.names, 1.5)])
def test_thresholds_are_a_probability_for_every_label(table) -> None:
    with pytest.raises(UsageError, match="threshold"):
        WEATHER.with_thresholds(table)


def test_the_majority_is_what_a_model_without_input_would_predict() -> None:
    assert NLI.predict_majority([2, 1, 2, 1]).label == "neutral"
    assert NLI.predict_majority([2, 1, 2, 1]).scores == (0.0, 0.5, 0.5)
    assert Range(0, 5).predict_majority([1.0, 2.0]).label == 1.5
    rows = [(1.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0)]
    assert WEATHER.predict_majority(rows).label == ("sun", "wind")
    assert WEATHER.predict_majority(rows).scores == (1.0, 0.0, 0.5, 0.0)
