"""`gptft resume`."""

from typer import Context, Option

from finetune.cli.launcher import launch_processes
from finetune.cli.options import NumProcesses, PythonTask, Run, Trust


def resume(
    context: Context,
    run: Run,
    task: PythonTask = None,
    trust_remote_code: Trust = False,
    epochs: float | None = Option(
        None, min=0, help="Train longer: the number of epochs in all.", show_default="as before"
    ),
    num_processes: NumProcesses = 1,
) -> None:
    """Resume an interrupted run from its latest checkpoint, or train a finished one longer.

    Example: gptft resume runs/rte

    With --epochs 5 a run of 3 epochs gets two more. The remaining updates have the learning rates
    of a run of 5 epochs.
    """
    from finetune.checkpointing.run_folder import RECIPE, load_run_recipe, read_recipe
    from finetune.cli.commands.pretrain import pretrain_with_display
    from finetune.cli.commands.train import train_with_display
    from finetune.cli.task_sources import find_python_task
    from finetune.pretraining.plan import is_plan, override_epochs, parse_run_plan
    from finetune.recipe.loading import override_recipe

    text = read_recipe(run)  # Raises UsageError if this is not a run directory.
    launch_processes(context, num_processes)
    if is_plan(text):
        plan = parse_run_plan(text, str(run / RECIPE), trust_remote_code)
        if epochs is not None:
            plan = override_epochs(plan, epochs)
        pretrain_with_display(plan, run, resume=True)
    else:
        recipe = load_run_recipe(run, trust_remote_code)
        if epochs is not None:
            recipe = override_recipe(recipe, {"train.epochs": epochs})
        train_with_display(recipe, run, find_python_task(task), resume=True)
