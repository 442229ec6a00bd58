"""A run: its directory, what makes it the same run, its plan, and its phases."""
