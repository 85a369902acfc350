"""A tiny world of instructions whose answers can be checked exactly."""
