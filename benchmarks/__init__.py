"""One script per claim: gptft and a peer with the same data, model and machine, in one run."""
