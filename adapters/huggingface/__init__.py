"""The Hugging Face cache and hub. Modules that use the network import the hub client; the cache does not need it."""
