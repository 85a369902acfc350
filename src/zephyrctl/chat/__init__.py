"""Chat rendering: templates, loss masks, tokenizers."""
