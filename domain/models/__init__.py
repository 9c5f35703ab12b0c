"""Models on disk: identity, files, detection of their capabilities, integrity, and the memory budget."""
