"""Mistakes that are made in plain Keras and in tfbp, for `benchmarks/silent_faults.py`."""
