"""The frozen base model with its adapters: log-probabilities, hidden states, batches, the chat template."""
