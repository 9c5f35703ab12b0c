"""Generated text over HTTP, shared by every API: from a parsed request to the bytes of its response."""
