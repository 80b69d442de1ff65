"""What `gateway.py` starts and asks."""
