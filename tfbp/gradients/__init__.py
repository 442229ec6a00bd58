"""Gradients: recorded, logged by layer and time step, and checked against finite differences."""
