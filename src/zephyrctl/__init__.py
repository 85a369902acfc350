"""zephyrctl: from seed prompts to an evaluated, aligned model."""

__version__ = "0.1.0"
