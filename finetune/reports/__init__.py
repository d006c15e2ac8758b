"""Reports on finished runs: one HTML page with scores, figures and errors."""
