"""How a policy is measured: replies to held-out prompts, intervals, metrics, and the choice of a candidate."""
