"""The HTTP API: chat in the OpenAI format, votes, operations and health."""
