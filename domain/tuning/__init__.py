"""Training a model on examples: the examples and their checks, the settings of a run, and what came of it."""
