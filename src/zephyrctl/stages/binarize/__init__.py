"""`binarize`: rated completions in, preference pairs out."""
