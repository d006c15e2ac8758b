"""`gptft pretrain`."""

from finetune.checkpointing.run_folder import read_result
from finetune.cli import main
from finetune.pretraining.plan import is_plan, parse_plan
from tests.support import jobs


def test_a_plan_and_a_folder_of_texts_make_a_base(base):
    plan = parse_plan((base / "recipe.yaml").read_text())
    assert plan.corpus.train == (str(base.parent / "books" / "train"),)
    assert plan.corpus.evaluate == (str(base.parent / "books" / "valid"),)
    assert (plan.train.updates, plan.train.learning_rate) == (4, 1e-2)
    assert read_result(base)["scores"]["evaluate"]["bits_per_byte"] > 0
    assert sum(event["event"] == "train" for event in jobs.log(base)) == 4


def test_resume_recognizes_a_plan_and_a_finished_run(base, capsys):
    assert main(["resume", str(base)]) == 0
    assert "is already finished" in capsys.readouterr().out
    assert is_plan((base / "recipe.yaml").read_text())


def test_from_continues_training_a_base(base, tmp_path, capsys):
    plan = base.parent / "small.yaml"
    corpus = str(base.parent / "books")
    words = ["pretrain", str(plan), "--corpus", corpus, "--updates", "1", "--from", str(base)]
    assert main([*words, "-o", str(tmp_path / "continued")]) == 0
    out = capsys.readouterr().out
    assert "bits_per_byte" in out
    assert f"--base {tmp_path / 'continued'}" in out
