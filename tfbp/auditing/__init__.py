"""Before training: what would silently go wrong, as findings that can be accepted by id."""
