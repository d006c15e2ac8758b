"""Scaling laws: fits of the loss over parameters, tokens and compute, and plans made with them.

`laws` has the forms and the published constants, `points` reads measured losses, `fitting` fits
them, `isoflop` finds the best model of each compute budget, and `planning` uses a law.
`critical_batch` says from the gradient noise scale what batch sizes cost.
"""
