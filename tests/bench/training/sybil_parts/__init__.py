"""Parts of the measurement `sybil.py`."""
