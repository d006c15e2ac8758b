"""Metrics, evaluation of a split, and prediction with a finished run."""
