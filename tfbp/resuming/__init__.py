"""Killed anywhere, a run goes on bit for bit: checkpoints, their state, and that of callbacks."""
