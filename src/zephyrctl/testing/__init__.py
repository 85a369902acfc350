"""Tools for tests and for authors of plug-ins."""
