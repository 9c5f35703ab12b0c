"""Generated text over HTTP: what every API shares between a request that was read and the bytes of its response."""
