"""The domain: frozen values and pure functions. Imports no other layer, and does no I/O."""
