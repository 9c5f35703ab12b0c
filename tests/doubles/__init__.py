"""A working in-memory double of every port, for tests that need no disk, network or model."""
