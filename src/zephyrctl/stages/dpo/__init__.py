"""`dpo`: preference pairs in, an aligned model out."""
