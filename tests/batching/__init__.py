"""Tests of `batching`."""
