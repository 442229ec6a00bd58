"""More than one process: which devices, who is there, and what a signal means."""
