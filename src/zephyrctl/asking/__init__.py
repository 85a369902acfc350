"""Whom a stage asks, and with which prompts."""
