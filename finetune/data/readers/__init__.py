"""Readers of CSV, TSV, JSON, JSON lines, Parquet and RACE files."""
