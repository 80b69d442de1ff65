"""The training job: snapshot, reward model, policy, gates, candidate."""
