"""One script per claim: a peer and we, on the same data, model and machine, in the same run."""
