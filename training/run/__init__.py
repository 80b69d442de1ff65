"""One run: its folder, checkpoints, lease and candidate, and the assistant's HTTP API as the job uses it."""
