"""What `gptft new` finds out about a file."""
