"""The display of a run from made-up events: plain lines and a live display."""

import io
import math
import re
import sys
import types
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from finetune.cli.run_display import (
    MeanLosses,
    RunProgress,
    display_run,
    format_losses,
    print_noise_scale,
    print_result,
)
from finetune.models.losses import Losses
from finetune.training.events import Evaluated, Finished, Notice, Result, Started
from finetune.training.group_norms import GroupNorms
from finetune.training.loop import Step
from finetune.training.noise_scale import GroupSizes, NoiseScale
from task_formats import Classes, Range

LABELS = Classes.of(["no", "yes"])


class Clock:
    """A clock that the tests set."""

    now = 100.0

    def __call__(self):
        return self.now


STARTED = Started(
    updates=40,
    done=0,
    examples=1280,
    evaluation_examples=277,
    parameters=124_439_808,
    device="cpu",
    precision="fp32",
    layout="packed",
    processes=1,
    truncated_tokens=12,
    skipped_rows=3,
    updates_per_epoch=10,
)


def step(number, tokens=100, **losses):
    parts = {"total": 1.5, "task": 0.5, "lm": 2.0, **losses}
    zero = torch.tensor(0.0)
    tensors = Losses(**{name: torch.tensor(value) for name, value in parts.items()})
    return Step(number, tensors, zero, zero, 6.25e-5, 32, tokens, 0.1, None)


def screen(width=80, terminal=False):
    return Console(
        file=io.StringIO(), width=width, force_terminal=terminal, markup=False, highlight=False,
        color_system=None,
    )  # fmt: skip


def display(events, out, clock=None):
    result = display_run(iter(events), "Training rte from gpt2", out, clock or Clock())
    return result, out.file.getvalue()


def result(folder):
    scores = {"validation": {"accuracy": 0.65, "loss": 0.7}, "mm": {"accuracy": 0.5}}
    return Result(scores, 20, 40, 4000, 83.0, folder)


def run_events(clock, seconds, updates=40):
    yield STARTED._replace(updates=updates)
    for number in range(1, updates + 1):
        clock.now += seconds
        yield step(number)


def test_model_and_data_are_printed_first():
    _, text = display([STARTED], screen())
    assert (
        text
        == """Training rte from gpt2
  124,439,808 parameters, fp32 on cpu, packed layout
  1,280 examples, 40 updates, evaluated on 277
  12 tokens removed from long texts (see --max-tokens)
  3 bad rows skipped
"""
    )
    plain = STARTED._replace(
        evaluation_examples=0, truncated_tokens=0, skipped_rows=0, processes=2, done=7
    )
    assert (
        display([plain], screen())[1]
        == """Training rte from gpt2
  124,439,808 parameters, fp32 on cpu, 2 processes, packed layout
  1,280 examples, 40 updates, no evaluation
  resuming after update 7
"""
    )


@pytest.mark.parametrize(
    ("seconds", "updates", "lines"),
    [
        (0.001, 40, 1),  # a short run prints only the last update
        (3.0, 40, 10),  # a line each tenth
        (0.5, 40, 10),
        (40.0, 40, 40),  # slow: a line each half minute
        (0.0011, 10_000, 6),  # tenths that are two seconds apart, and the last
    ],
)
def test_plain_lines_come_every_tenth_or_half_minute(seconds, updates, lines):
    clock = Clock()
    out = screen()
    _, text = display(run_events(clock, seconds, updates), out, clock)
    printed = [line for line in text.splitlines() if line.startswith("update ")]
    assert len(printed) == lines
    assert printed[-1].startswith(f"update {updates}/{updates} 100%")


def test_a_plain_line_has_losses_learning_rate_speed_and_time_left():
    clock = Clock()
    _, text = display(run_events(clock, 3.0), screen(), clock)
    line = next(line for line in text.splitlines() if line.startswith("update  4/40"))
    assert "10%  epoch 0.40  loss 1.5000  task 0.5000  lm 2.0000  lr 6.25e-05" in line
    assert re.search(r"33 tokens/s  [\d,.]+ [MG]iB  0:00:12 elapsed  0:01:48 left$", line)


def test_the_loss_is_the_mean_of_the_last_twenty_updates():
    clock, out = Clock(), screen(200)

    def events():
        yield STARTED
        for number in range(1, 41):
            clock.now += 3
            yield step(number, total=float(number), task=float(number))

    _, text = display(events(), out, clock)
    lines = [line for line in text.splitlines() if line.startswith("update ")]
    assert "loss 2.5000  lr" in lines[0]
    assert "loss 30.5000  lr" in lines[-1]


def test_a_plain_line_has_the_noise_scale_if_it_is_measured():
    norms = GroupNorms(torch.tensor(1.0), GroupSizes((0.5, 0.5), 0.1, 0.05))
    unknown = step(1)._replace(group_norms=norms)
    known = step(40)._replace(group_norms=norms, noise_scale=NoiseScale(143.2, 120.0, 170.0))
    for last, text in ((unknown, "noise scale not yet known"), (known, "noise scale 143  ")):
        started = STARTED._replace(updates=last.number)
        assert text in display([started, last], screen(width=200))[1]
    assert "noise scale" not in display([STARTED._replace(updates=1), step(1)], screen())[1]


@pytest.mark.parametrize(("high", "ends"), [(170.4, "120 to 170"), (math.inf, "120 or more")])
def test_the_result_has_the_noise_scale_with_its_interval(high, ends, tmp_path, capsys):
    scale = NoiseScale(1143.2, 120.0, high)
    print_noise_scale(replace(result(tmp_path / "rte"), noise_scale=scale), "block")
    printed = capsys.readouterr().out
    assert f"Gradient noise scale: 1,143 blocks (95 % interval {ends})." in printed
    assert f"gptft scale noise {tmp_path}/rte" in printed
    print_noise_scale(result(tmp_path / "rte"), "block")
    assert capsys.readouterr().out == ""


def test_a_notebook_shows_plain_lines(monkeypatch):
    shown = []
    module = types.ModuleType("IPython.display")
    module.display = lambda item: shown.append(item._repr_mimebundle_([], [])["text/plain"])
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    clock = Clock()
    events = [*run_events(clock, 3.0), Evaluated(40, 3.0, {"f1": 0.5}, True)]
    display_run(iter(events), "RTE", Console(force_jupyter=True, width=150), clock)
    assert "RTE" in shown[0].splitlines()[0]
    assert any("update 40/40 100%" in line for line in shown)
    assert "f1 0.5000" in shown[-1]


def test_evaluations_and_notices_are_printed():
    best = Evaluated(20, 1.5, {"accuracy": 0.61, "loss": 0.65}, True)
    worse = Evaluated(40, 3.0, {"accuracy": 0.6, "loss": 0.7}, False)
    for terminal in (False, True):
        _, text = display(
            [STARTED, best, worse, Notice("[bold]rows[/bold] \\[x]")], screen(200, terminal)
        )
        assert "epoch 1.5  update 20  accuracy 0.6100  loss 0.6500  best so far\n" in text
        assert "epoch 3  update 40  accuracy 0.6000  loss 0.7000\n" in text
        assert "note: [bold]rows[/bold] \\[x]\n" in text


def test_the_live_display_shows_the_last_update_and_the_best_score():
    clock = Clock()
    events = [*run_events(clock, 1.0), Evaluated(40, 3.0, {"f1": 0.5}, True), step(40)]
    _, text = display(events, screen(200, terminal=True), clock)
    assert "update 40/40" in text
    assert "100%  epoch 4.00  loss 1.5000  task 0.5000  lm 2.0000  lr 6.25e-05" in text
    assert "0:00:00 elapsed  0:00:00 left" in text
    assert "best f1 0.5000  at update 40" in text


def test_losses_are_read_no_more_than_four_times_a_second():
    clock, reads = Clock(), []

    class Counting:
        def __float__(self):
            reads.append(clock.now)
            return 0.0

    def events():
        for event in run_events(clock, 0.01, 1000):
            losses = Losses(Counting(), Counting(), Counting())
            yield event._replace(losses=losses) if isinstance(event, Step) else event

    display_run(events(), "a", screen(80, terminal=True), clock)
    assert 30 <= len(set(reads)) <= 42


def test_the_result_is_printed_with_the_next_commands(tmp_path, capsys):
    folder = tmp_path / "runs of mine"
    shown, _ = display([STARTED, Finished(result(folder))], screen())
    assert shown == result(folder)
    print_result(shown, LABELS)
    text = capsys.readouterr().out
    assert "Trained 40 updates, 4,000 tokens, in 0:01:23." in text
    assert f"gptft predict '{folder}' FILE -o OUT" in text
    assert "update 20" in text


def test_the_baseline_stands_beside_the_score(tmp_path, capsys):
    reached = replace(
        result(tmp_path),
        scores={"dev": {"accuracy": 0.5}, "test": {"accuracy": 0.75}},
        majority={"dev": {"accuracy": 0.5}, "test": {"accuracy": 0.625}},
    )
    print_result(reached, LABELS)
    text = " ".join(capsys.readouterr().out.split())
    assert "majority class 0.6250" in text
    assert "accuracy on dev is no better than the most frequent training label." in text
    assert "accuracy on test is no better" not in text


def test_the_baseline_of_scores_is_their_mean(tmp_path, capsys):
    scores = {"dev": {"pearson": 0.0, "mse": 2.0}}
    print_result(replace(result(tmp_path), scores=scores, majority=scores), Range(0, 5))
    text = " ".join(capsys.readouterr().out.split())
    assert "mean score 0.0000 2.0000" in text
    assert "pearson on dev is no better than the mean training score." in text


def test_the_baseline_of_ordered_classes_is_a_class_whatever_the_metric(tmp_path, capsys):
    scores = {"dev": {"mae": 1.0}}
    labels = replace(Classes.of(["bad", "fair", "good"]), ordered=True)
    print_result(replace(result(tmp_path), scores=scores, majority=scores), labels)
    text = " ".join(capsys.readouterr().out.split())
    assert "majority class 1.0000" in text
    assert "mae on dev is no better than the most frequent training label." in text


def test_speed_is_that_of_recent_updates_without_evaluations():
    clock = Clock()
    progress = RunProgress(clock)
    progress.add(STARTED)
    for number in range(1, 5):
        clock.now += 2
        progress.add(step(number, tokens=100))
    clock.now += 1000
    progress.add(Evaluated(4, 0.1, {}, True))
    clock.now += 2
    progress.add(step(5, tokens=100))
    assert progress.speed == "50 tokens/s"
    assert progress.time_left == "0:01:10 left"
    for number in range(6, 106):
        clock.now += 3
        progress.add(step(number, tokens=100))
    assert progress.speed == "33 tokens/s"


def test_without_an_lm_loss_none_is_printed():
    assert format_losses(MeanLosses(0.5, 0.5, 0.0), 6.25e-5) == "loss 0.5000  lr 6.25e-05"
    # A loss of standardized scores, and their squared error.
    text = "loss 0.5000  task 8.0000  lr 6.25e-05"
    assert format_losses(MeanLosses(0.5, 8.0, 0.0), 6.25e-5) == text


def test_many_truncated_rows_are_a_warning_instead_of_a_count():
    warning = "38% of the training rows are longer than 512 tokens, and 41% ..."
    _, shown = display([STARTED._replace(truncation_warning=warning)], screen(width=200))
    assert f"warning: {warning}" in shown
    assert "removed from long texts" not in shown
