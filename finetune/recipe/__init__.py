"""Recipes: the typed schema, loading from YAML, overrides and error messages."""
