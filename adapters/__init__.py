"""How it is done. Each folder is one technology; folders do not know each other, and only the container knows them."""
