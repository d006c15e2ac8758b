"""Readers of rows from CSV, TSV, JSON, JSON lines, Parquet and RACE files."""
