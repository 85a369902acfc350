"""Editions: frozen settings of the paper and of the sandbox, as YAML."""
