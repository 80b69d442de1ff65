"""One turn, blind drafts, and the limits on replies in flight."""
