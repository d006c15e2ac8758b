"""Scripts that run without gptft: `predict.py` of exported folders, and the check of an export."""
