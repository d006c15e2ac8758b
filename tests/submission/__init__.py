"""Tests of `submission`."""
