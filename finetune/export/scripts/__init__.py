"""Scripts that run without gptft: those of exported folders, and the check of an export."""
