"""How models are asked: one caller, bounded, counted, and never twice for the same."""
