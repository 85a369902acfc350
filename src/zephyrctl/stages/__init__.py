"""Stages: each a room with a config and a run; they do not know each other."""
