"""Exported folders and model cards."""
