"""Frozen work is done once: what cannot change is computed once for each example."""
