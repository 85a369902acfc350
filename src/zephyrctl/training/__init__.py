"""Training: plans, tokens, loops, checkpoints. TRL does the steps; what it is fed and what is kept is
decided here."""
