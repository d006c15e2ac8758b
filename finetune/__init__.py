"""Fine-tune pretrained decoders for language understanding, the way GPT-1 did."""
