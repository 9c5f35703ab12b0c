"""Loading text models from a directory, without running code that came with them."""
