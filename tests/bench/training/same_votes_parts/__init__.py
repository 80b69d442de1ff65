"""Parts of the measurement `same_votes.py`."""
