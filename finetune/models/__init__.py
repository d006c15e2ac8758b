"""Pretrained decoders, task heads, losses and attention for packed batches."""
