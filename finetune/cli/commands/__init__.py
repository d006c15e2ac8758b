"""The commands of `gptft`, one module each."""
