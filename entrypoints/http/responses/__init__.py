"""The OpenAI Responses API: conversations as lists of items, answers as lists of items, kept for the next request."""
