"""Who asks: API keys and browsers."""
