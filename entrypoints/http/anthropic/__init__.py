"""The Anthropic-compatible API: messages, and counts of their tokens."""
