"""Run folders, checkpoints and saved models."""
