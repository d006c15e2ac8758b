"""Attention for packed batches: the transformers interface, masks and kernels."""
