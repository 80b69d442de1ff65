"""What `store_scale.py` starts."""
