"""The commands of `gptft`, one file each."""
