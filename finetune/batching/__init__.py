"""Batches: which examples an update reads, and how they become tensors."""
