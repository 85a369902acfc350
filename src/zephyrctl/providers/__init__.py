"""Models that answer: one port, one caller, thin adapters."""
