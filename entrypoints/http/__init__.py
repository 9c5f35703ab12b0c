"""The HTTP server: one application of several APIs, on waitress, in a supervised worker process."""
