"""Tests of `checkpointing`."""
