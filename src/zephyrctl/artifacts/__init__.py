"""Where results live: versioned, immutable, checked before they are read."""
