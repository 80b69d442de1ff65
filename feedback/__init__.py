"""The store: what was said, which version said it, what people thought of it."""
