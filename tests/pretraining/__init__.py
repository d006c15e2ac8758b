"""Tests of `pretraining`."""
