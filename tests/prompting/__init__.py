"""Tests of `prompting`."""
