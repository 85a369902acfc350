"""`import`: the user's own data or model in, an artifact out."""
