"""Faster replacements for parts of a decoder, each with the same result."""
