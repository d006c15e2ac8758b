"""Progress: a line every ten seconds in a pipe, with rate and time left; a bar in a terminal."""

import io

from rich.console import Console
from rich.live import Live

from finetune.cli.progress_display import (
    LiveProgress,
    PrintedProgress,
    describe_progress,
    draw_progress,
    show_progress,
)
from finetune.progress import Progress, displayed_by
from tests.support import jobs


def test_a_line_every_ten_seconds_and_one_at_the_end(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    display = PrintedProgress(Console(file=out, width=120), clock=lambda: now[0])
    with displayed_by(display), Progress("predicting", 1000) as progress:
        for _ in progress.count(range(100), lambda _: 10):
            now[0] += 0.25
    assert out.getvalue().splitlines() == [
        "predicting 400 of 1,000 rows  40%  40 rows/s  0:00:15 left",
        "predicting 800 of 1,000 rows  80%  40 rows/s  0:00:05 left",
        "predicting 1,000 of 1,000 rows  100%  40 rows/s  in 0:00:25",
    ]


def test_a_live_display_shows_progress_and_then_what_it_showed_before(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    live = Live("update 3", console=Console(file=io.StringIO(), width=80), auto_refresh=False)
    with displayed_by(LiveProgress(live)):
        with Progress("evaluating dev", 20) as progress:
            now[0] = 1.0
            progress.advance(10)
            drawn = live.get_renderable()
            assert str(drawn.renderables[0]).startswith("evaluating dev 10 of 20 rows  50%")
        assert str(live.get_renderable()) == "update 3"


def test_reading_and_evaluation_are_counted(tmp_path):
    """What training and `gptft evaluate` show while they prepare and evaluate."""
    seen: dict[str, tuple[int, int | None]] = {}

    def note(progress: Progress) -> None:
        seen[progress.description] = (progress.done, progress.total)

    recipe = jobs.recipe("entailment", "tiny", tmp_path, train=20, held_out=9)
    with displayed_by(note):
        job = jobs.prepare(recipe)
        evaluation = job.evaluation()
        evaluation.score(evaluation.passes)
    assert seen == {
        "reading train.jsonl": (20, 20),
        "reading held-out.jsonl": (9, 9),
        "evaluating evaluate": (9, 9),
    }


def test_short_work_prints_nothing(capsys):
    with show_progress(), Progress("reading") as progress:
        progress.advance(5)
    assert capsys.readouterr().err == ""


def test_rows_that_were_there_before_do_not_count_for_the_speed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress("predicting", 200, done=100)
    now[0] = 10.0
    progress.advance(20)
    assert describe_progress(progress) == (
        "predicting 120 of 200 rows  60%  2 rows/s  0:00:40 left"
    )
    assert len(draw_progress(progress).renderables) == 2


def test_bytes_are_megabytes():
    progress = Progress("downloading", 5_000_000, "byte")
    progress.done = 2_500_000
    assert describe_progress(progress).startswith("downloading 2.5 of 5.0 MB  50%")
