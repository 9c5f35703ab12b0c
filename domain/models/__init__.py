"""Models on disk: identity, files, what they are for, whether they are complete, and the memory they need."""
