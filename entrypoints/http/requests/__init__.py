"""What clients may ask: the bodies of requests, read strictly, and turned into domain values."""
