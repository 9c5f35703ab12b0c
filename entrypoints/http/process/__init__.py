"""The server's processes: the parent that owns the listening sockets, and the worker that serves them."""
