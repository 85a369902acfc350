"""Models on this machine: batched transformers, or vLLM servers for as long as a stage asks."""
