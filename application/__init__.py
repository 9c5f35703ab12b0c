"""The application: use cases and the ports they need. Imports the domain and no other layer."""
