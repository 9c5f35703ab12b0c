"""The Unix sockets of this user's servers: other programs of the user run models in them, list and stop them."""
