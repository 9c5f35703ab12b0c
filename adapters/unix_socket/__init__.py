"""The Unix sockets of this user's servers, by which other programs use their models, list and stop them."""
