"""The Hugging Face cache and hub: the only place that knows their layout and client."""
