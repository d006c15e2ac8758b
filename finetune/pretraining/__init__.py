"""The first stage of GPT-1: a decoder learns to predict plain text."""
