"""What was moved or edited while a run was interrupted: what is reported and what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import finetune
from finetune.checkpointing.provenance import fingerprint_base
from finetune.checkpointing.run_folder import RECIPE
from finetune.distributed.setup import choose_precision
from finetune.models.pretrained import load_decoder
from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import BaseConfig, LoraConfig, PromptConfig, Recipe
from finetune.training.events import Notice, Started
from finetune.training.finetuning import events
from task_formats import UsageError
from tests.support import jobs

JOB = ("classification", {"checkpoint_updates": 1, "seed": 1})


def stop(recipe: Recipe, run: Path) -> Path:
    """Trains two updates; the folder of the run, which has two checkpoints then."""
    assert jobs.stop_at(recipe, run, 2).update == 2
    return run


def resume(run: Path) -> tuple[list[str], list[int]]:
    """As `gptft resume RUN`: its notices, and after how many updates it starts."""
    seen = list(events(load_recipe(run / RECIPE), run, resume=True))
    notices = [event.text for event in seen if isinstance(event, Notice)]
    return notices, [event.done for event in seen if isinstance(event, Started)]


def test_a_run_can_be_moved_and_copied(job, undisturbed, tmp_path) -> None:
    moved = stop(job, tmp_path / "run").rename(tmp_path / "moved")
    copied = Path(shutil.copytree(moved, tmp_path / "copied"))
    for run in (moved, copied):
        assert resume(run) == ([], [2])
        jobs.assert_same(run, undisturbed)


def edit(run: Path, old: str, new: str) -> None:
    """Replaces text in the recipe of a run."""
    text = (run / RECIPE).read_text()
    assert old in text
    (run / RECIPE).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("learning_rate: 0.001", "learning_rate: 0.01", r"train\.learning_rate: 0\.001, not 0\.01"),
        ("seed: 1\n", "seed: 2\n", r"train\.seed: 1, not 2"),
        ("0: bad", "0: worse", r"task\.labels: {0: 'bad'"),
        ("bias: true", "bias: false", r"head\.bias: True, not False"),
    ],
)
def test_an_edited_recipe_is_refused(old, new, named, job, undisturbed, tmp_path) -> None:
    run = stop(job, tmp_path / "run")
    edit(run, old, new)
    with pytest.raises(UsageError, match=f"another {named}") as caught:
        resume(run)
    assert caught.value.where == str(run / RECIPE)
    assert "restore that value" in str(caught.value)
    edit(run, new, old)
    assert resume(run) == ([], [2])
    jobs.assert_same(run, undisturbed)


def test_a_recipe_can_be_edited_where_nothing_depends_on_it(job, undisturbed, tmp_path) -> None:
    run = stop(job, tmp_path / "run")
    edit(run, "checkpoint_updates: 1", "checkpoint_updates: 3")
    edit(run, "about: ", "about: mine")
    assert resume(run) == ([], [2])
    assert jobs.distance(jobs.weights(run), jobs.weights(undisturbed)) == 0


def test_a_command_overrides_an_edited_recipe(job, undisturbed, tmp_path) -> None:
    """`gptft train ... --resume` with the old values continues, and writes them again."""
    run = stop(job, tmp_path / "run")
    edit(run, "learning_rate: 0.001", "learning_rate: 0.01")
    jobs.train(job, run, resume=True)
    jobs.assert_same(run, undisturbed)
    assert "learning_rate: 0.001" in (run / RECIPE).read_text()


@pytest.fixture
def own_base(bases, tmp_path) -> Path:
    return Path(shutil.copytree(bases("gpt2"), tmp_path / "base"))


def link(base: Path, target: Path) -> Path:
    """A folder of links to files whose names say nothing, as in the cache of the hub."""
    for folder in (target, target.parent / "blobs"):
        folder.mkdir()
    for number, path in enumerate(sorted(base.iterdir(), reverse=True)):
        blob = target.parent / "blobs" / f"{number:040x}"
        path.rename(blob)
        (target / path.name).symlink_to(blob)
    return target


@pytest.mark.parametrize(
    "move",
    [
        lambda base, target: base.rename(target),
        lambda base, target: Path(shutil.copytree(base, target)),
        link,
    ],
    ids=["moved", "copied", "linked"],
)
def test_the_same_base_may_be_elsewhere(move, job, own_base, undisturbed, tmp_path) -> None:
    mine = jobs.change(job, "base", path=str(own_base))
    run = stop(mine, tmp_path / "run")
    elsewhere = jobs.change(job, "base", path=str(move(own_base, tmp_path / "elsewhere")))
    jobs.train(elsewhere, run, resume=True)
    jobs.assert_same(run, undisturbed)


def test_a_base_of_the_hub_is_the_same_as_its_copy(bases) -> None:
    """Whatever other files are in the repository of the hub."""
    commit = "0123456789" * 4
    cache = Path(constants.HF_HUB_CACHE, "models--me--mine")
    snapshot = cache / "snapshots" / commit
    shutil.copytree(bases("gpt2"), snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    (snapshot / "README.md").write_text("A base.")
    decoder = load_decoder(BaseConfig(path="me/mine")).decoder
    local = fingerprint_base(str(bases("gpt2")), decoder)
    assert fingerprint_base("me/mine", decoder) == local
    assert local.keys() == {"weights", "config", "tokenizer"}


def scale(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    scaled = {name: 1.5 * part for name, part in weights.items()}
    save_file(scaled, base / "model.safetensors", {"format": "pt"})


def annotate(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "note": "edited"}))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (scale, "weights"),
        (lambda base: annotate(base / "config.json"), "config"),
        (lambda base: annotate(base / "tokenizer_config.json"), "tokenizer"),
    ],
)
def test_a_changed_base_is_refused(change, part, job, own_base, tmp_path) -> None:
    run = stop(jobs.change(job, "base", path=str(own_base)), tmp_path / "run")
    change(own_base)
    with pytest.raises(UsageError, match=f"not the base that the run began with: its {part}"):
        resume(run)


def test_data_files_may_be_elsewhere(job, undisturbed, tmp_path) -> None:
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "evaluate")}
    for name, path in files.items():
        shutil.copy(getattr(job.data, name), path)
    moved = {name: tmp_path / f"moved-{name}.jsonl" for name in files}
    run = stop(jobs.change(job, "data", **{n: str(p) for n, p in files.items()}), tmp_path / "run")
    for name, path in files.items():
        path.rename(moved[name])
    jobs.train(jobs.change(job, "data", **{n: str(p) for n, p in moved.items()}), run, resume=True)
    jobs.assert_same(run, undisturbed)


@pytest.mark.parametrize(
    ("name", "change", "counts"),
    [
        ("train", {"train": 19}, "20 rows then, 19 rows now"),
        ("train", {"limit": 12}, "20 rows then, 12 rows now"),
        ("evaluate", {"evaluate": 9}, "9 rows then, 9 rows now"),
        ("evaluate", {"evaluate": None}, "9 rows then, none now"),
    ],
)
def test_other_rows_are_refused(name, change, counts, job, tmp_path) -> None:
    """A number stands for a file of so many rows: of the training rows, or new ones."""
    run = stop(job, tmp_path / "run")
    for split, rows in change.items():
        if split != "limit" and rows is not None:
            drawn = jobs.rows("classification", 20, seed=0 if split == "train" else 7)
            change = {split: jobs.write_rows(tmp_path / "other.jsonl", drawn[:rows])}
    other = jobs.change(job, "data", **change)
    with pytest.raises(UsageError, match=re.escape(counts)) as caught:
        jobs.train(other, run, resume=True)
    assert caught.value.where == f"data.{name}"
    assert "data.limit" in caught.value.cure


PROMPT = PromptConfig(
    text="{title}: {text}", answers={n: f" {n}" for n in ("bad", "middling", "good")}
)
HARMLESS = {
    "metrics": ("task", {"metrics": ("accuracy", "macro_f1")}),
    "prompt": (
        "task",
        {"prompt": PROMPT, "columns": {"text": "text", "title": "premise", "label": "label"}},
    ),
    "deterministic": ("train", {"deterministic": True}),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_what_changes_no_weight_may_change(change, job, undisturbed, tmp_path) -> None:
    part, values = HARMLESS[change]
    run = stop(job, tmp_path / "run")
    result = finetune.train(jobs.change(job, part, **values), run, resume=True)
    assert jobs.distance(jobs.weights(run), jobs.weights(undisturbed)) == 0
    assert ("macro_f1" in result.scores["evaluate"]) == (change == "metrics")


def test_a_metric_that_selects_may_not_change(job, tmp_path) -> None:
    mean = jobs.change(job, "task", select="mean")
    run = stop(mean, tmp_path / "run")
    more = jobs.change(mean, "task", metrics=("accuracy", "macro_f1"))
    with pytest.raises(UsageError, match=r"another task\.metrics"):
        jobs.train(more, run, resume=True)


def test_the_precision_that_auto_chose_may_be_named(job, tmp_path, monkeypatch) -> None:
    chosen = choose_precision("auto", "cpu")
    automatic, named = (jobs.change(job, "train", precision=p) for p in ("auto", chosen))
    for number, (first, second) in enumerate([(automatic, named), (named, automatic)]):
        run = stop(first, tmp_path / f"{number}")
        finetune.train(second, run, resume=True)
    run = stop(automatic, tmp_path / "other machine")
    other = "fp32" if chosen == "bf16" else "bf16"
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: other == "bf16")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: other == "bf16")
    with pytest.raises(UsageError, match=r"another train\.precision") as caught:
        finetune.train(automatic, run, resume=True)
    assert f"--precision {chosen}" in caught.value.cure
    assert finetune.train(named, run, resume=True).updates == 6


def test_a_changed_base_is_refused_where_its_weights_are_frozen(job, own_base, tmp_path) -> None:
    pytest.importorskip("peft")
    adapted = jobs.change(job, "base", path=str(own_base), lora=LoraConfig(rank=4))
    run = stop(adapted, tmp_path / "run")
    scale(own_base)
    with pytest.raises(UsageError, match="not the base that the run began with"):
        resume(run)
