"""Tests of `models.attention`."""
