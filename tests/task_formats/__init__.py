"""Tests of `task_formats`."""
