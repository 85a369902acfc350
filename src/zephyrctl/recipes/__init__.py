"""Whole recipes: chains of stage configs, and what their results say together."""
