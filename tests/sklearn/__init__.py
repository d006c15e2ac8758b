"""Tests of `sklearn`."""
