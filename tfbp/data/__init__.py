"""Examples with an index, and where they come from."""
