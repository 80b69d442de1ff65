"""One training round: its stages in their order, and its result."""
