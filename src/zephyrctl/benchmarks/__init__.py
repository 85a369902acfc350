"""What a score means: benchmarks, the scores they give, and the statistics under them."""
