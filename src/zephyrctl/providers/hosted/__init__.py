"""Models behind an API: addresses, the wire in both directions, and what each model accepts."""
