"""Chat rendering: quoted blocks, templates, loss masks."""
