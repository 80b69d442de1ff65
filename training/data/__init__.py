"""The snapshot as a run reads it: votes, prompts, corrections, and how much one person may give."""
