"""Writes a finished run in formats that other programs read, and uploads it to the Hub."""
