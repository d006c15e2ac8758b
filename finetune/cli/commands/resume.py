"""`gptft resume`."""

from typer import Context

from finetune.cli.launcher import launch_processes
from finetune.cli.options import NumProcesses, PythonTask, Run, Trust


def resume(
    context: Context,
    run: Run,
    task: PythonTask = None,
    trust_remote_code: Trust = False,
    num_processes: NumProcesses = 1,
) -> None:
    """Resume an interrupted run from its latest checkpoint.

    Example: gptft resume runs/rte
    """
    from finetune.checkpointing.run_folder import RECIPE, load_run_recipe, read_recipe
    from finetune.cli.commands.pretrain import pretrain_with_display
    from finetune.cli.commands.train import train_with_display
    from finetune.cli.task_sources import find_python_task
    from finetune.pretraining.plan import is_plan, parse_run_plan

    text = read_recipe(run)  # Raises UsageError if this is not a run directory.
    launch_processes(context, num_processes)
    if is_plan(text):
        plan = parse_run_plan(text, str(run / RECIPE), trust_remote_code)
        pretrain_with_display(plan, run, resume=True)
    else:
        recipe = load_run_recipe(run, trust_remote_code)
        train_with_display(recipe, run, find_python_task(task), resume=True)
