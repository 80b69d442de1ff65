"""The whole loop with simulated people, through the real HTTP API."""
