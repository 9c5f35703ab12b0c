"""What can be asked: use cases, and the ports they need. Knows the domain and nothing else of ours."""
