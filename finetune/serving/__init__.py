"""`gptft serve`: a finished run behind HTTP."""
