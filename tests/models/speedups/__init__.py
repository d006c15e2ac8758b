"""Tests of `models.speedups`."""
