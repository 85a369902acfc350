"""`sft`: dialogues in, a fine-tuned model out."""
