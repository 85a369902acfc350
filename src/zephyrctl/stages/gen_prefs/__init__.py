"""`gen-prefs`: prompts in, rated completions out."""
