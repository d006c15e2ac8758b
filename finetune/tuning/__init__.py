"""Hyperparameter search: trials of one recipe over stated ranges, through Optuna.

`tune(recipe, folder, Search(space, seeds=(0, 1)))` returns the trials; `events` yields progress.
"""
