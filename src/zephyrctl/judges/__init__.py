"""Judges: rubrics as text, rendering and strict parsing of replies."""
