"""Public contracts as data: JSON Schemas and examples, shipped so that the program can print them."""
