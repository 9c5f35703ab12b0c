"""A working double of every port, shipped with the product: the program runs end to end on them with no disk and no MLX."""
