"""The assistant that serves people: its parts, who asks, how it starts, drains and stops."""
