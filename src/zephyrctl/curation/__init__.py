"""Filters, duplicates, novelty and contamination: pure, rows in, rows and reasons out."""
