"""Preference losses: log-probabilities in, losses and metrics out. Pure functions."""
