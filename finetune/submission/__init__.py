"""Predictions of finished runs in the form that a benchmark asks for."""
