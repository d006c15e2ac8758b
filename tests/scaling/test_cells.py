"""The grid of a study: names, chains, shards."""

import re

import pytest

from finetune.pretraining.plan import find_stable_end
from finetune.scaling.cells import plan_cells, select_cells
from finetune.scaling.study_plan import load_study_plan, shipped_studies
from task_formats import UsageError

PLAN = """
corpus: {train: train.txt, evaluate: valid.txt}
tokenizer: {vocabulary: 300}
shape: {style: gpt2, positions: 24}
sizes:
  - {layers: 1, width: 16, heads: 2}
  - {layers: 2, width: 32, heads: 2}
tokens: [3e3, 1e3, 2e3]
seeds: [0, 1]
learning_rate: {value: 4e-3, width: 16, exponent: -0.5}
train: {schedule: wsd, batch_size: 2, warmup_updates: 3}
"""


@pytest.fixture
def load(tmp_path):
    def function(text=PLAN, **overrides):
        (tmp_path / "plan.yaml").write_text(text)
        return load_study_plan(tmp_path / "plan.yaml", overrides)

    return function


def test_a_grid_of_sizes_tokens_and_seeds(load):
    cells = plan_cells(load())
    assert [cell.name for cell in cells[:3]] == ["1x16-1k-seed0", "1x16-2k-seed0", "1x16-3k-seed0"]
    assert len({cell.name for cell in cells}) == 12
    for cell in cells:
        wanted = {"1k": 1e3, "2k": 2e3, "3k": 3e3}[cell.name.split("-")[1]]
        assert cell.tokens == pytest.approx(wanted, abs=23)
        assert cell.updates == round(wanted / (2 * 23))
    rates = {cell.plan.shape.width: cell.plan.train.learning_rate for cell in cells}
    assert rates == pytest.approx({16: 4e-3, 32: 4e-3 / 2**0.5})


def test_a_chain_goes_on_from_the_constant_part_of_the_cell_before(load):
    first, second, third = plan_cells(load())[:3]
    assert (first.parent, first.parent_updates) == ("", 0)
    assert (second.parent, third.parent) == (first.name, second.name)
    assert second.parent_updates == find_stable_end(first.updates, 0.2) < first.updates


def test_with_cosine_every_cell_is_alone(load):
    cells = plan_cells(load(**{"train.schedule": "cosine"}))
    assert len(cells) == 12
    assert not any(cell.parent for cell in cells)


def test_a_sweep_of_learning_rates_makes_every_run_with_each(load):
    cells = plan_cells(load(**{"learning_rate.factors": [0.5, 1, 2], "seeds": [0]}))
    assert len(cells) == 18
    group = [cell for cell in cells if cell.group == "1x16-1k"]
    rates = {cell.name: cell.plan.train.learning_rate for cell in group}
    assert rates == pytest.approx(
        {"1x16-1k-lr0.5-seed0": 2e-3, "1x16-1k-lr1-seed0": 4e-3, "1x16-1k-lr2-seed0": 8e-3}
    )


def test_every_size_spends_a_budget(load):
    text = PLAN.replace("tokens: [3e3, 1e3, 2e3]", "budgets: [3e8, 1e9]")
    cells = plan_cells(load(text))
    assert len(cells) == 8
    for cell in cells:
        budget = {"c300M": 3e8, "c1G": 1e9}[cell.name.split("-")[1]]
        assert cell.count_flops().total == pytest.approx(budget, rel=0.06)


def test_sizes_that_differ_in_their_heads_have_other_names(load):
    text = PLAN.replace("layers: 2, width: 32", "layers: 1, width: 16, feed_forward: 80")
    assert {cell.name.split("-")[0] for cell in plan_cells(load(text))} == {"1x16x2", "1x16x2x80"}
    with pytest.raises(UsageError, match="the size 1x16x2 is given twice"):
        plan_cells(load(PLAN.replace("layers: 2, width: 32", "layers: 1, width: 16")))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_are_a_partition_of_whole_chains(load, count):
    cells = plan_cells(load())
    shards = [select_cells(cells, shard=(number + 1, count)) for number in range(count)]
    assert sorted(cell.name for shard in shards for cell in shard) == sorted(c.name for c in cells)
    for shard in shards:
        names = {cell.name for cell in shard}
        assert all(cell.parent in names for cell in shard if cell.parent)
    if count == 2:
        one, two = (sum(cell.count_flops().total for cell in shard) for shard in shards)
        assert one == pytest.approx(two, rel=0.01)


def test_cells_are_selected_by_name(load):
    cells = plan_cells(load())
    assert {cell.name for cell in select_cells(cells, ["2x32*seed1"])} == {
        f"2x32-{tokens}-seed1" for tokens in ("1k", "2k", "3k")
    }
    with pytest.raises(UsageError, match="no cell '2x33-1k-seed1' in this study"):
        select_cells(cells, ["2x33-1k-seed1"])
    with pytest.raises(UsageError, match="there is no part 3 of 2"):
        select_cells(cells, shard=(3, 2))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tokens: [3e3", "budgets: [1e9]\ntokens: [3e3", "give one of tokens and budgets"),
        (", evaluate: valid.txt", "", "the loss is measured on corpus.evaluate"),
        ("batch_size: 2", "batch_size: 2, seed: 3", "train.seed: every run of a study has its own"),
        ("warmup_updates: 3", "warmup_updates: 30", "the warm-up takes 30 of 22 updates"),
        (", width: 16, exp", ", exp", "learning_rate.exponent needs learning_rate.width"),
        ("heads: 2}\ntokens", "heads: 5}\ntokens", "width 32 is not a multiple of heads 5"),
        ("layers: 2,", "layer: 2,", "unknown key 'sizes.1.layer'"),
        ("positions: 24", "positions: 24, width: 0", "shape.width must be greater than 0"),
    ],
)
def test_wrong_plans_are_one_message(load, old, new, message):
    assert old in PLAN
    with pytest.raises(UsageError) as caught:
        load(PLAN.replace(old, new))
    assert message in str(caught.value)
    assert "plan.yaml" in str(caught.value)


def test_the_shipped_studies_load():
    for name in shipped_studies():
        assert len(plan_cells(load_study_plan(name))) == 20


def test_the_plan_on_the_page_loads(load, root):
    page = (root / "docs" / "scaling.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(plan_cells(load(text))) == 9
