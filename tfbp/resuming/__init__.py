"""Killed anywhere, goes on bit for bit: checkpoints, the state in them, what callbacks remember."""
