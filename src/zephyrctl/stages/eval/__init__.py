"""`eval`: a model in, verdicts and scores out."""
