"""More than one process: its devices, its rendezvous, and what a signal means."""
