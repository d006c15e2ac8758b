"""Tasks asked in words, without training: zero-, one- and few-shot (GPT-2, GPT-3)."""
