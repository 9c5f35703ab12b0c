"""The OpenAI-compatible API: its request bodies, its renderers and its resources."""
