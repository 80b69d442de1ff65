"""vLLM: start it, watch it, talk to it."""
