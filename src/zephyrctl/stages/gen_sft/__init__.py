"""`gen-sft`: seed prompts in, dialogues to imitate out."""
