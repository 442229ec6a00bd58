"""Gradients, looked at: recorded, measured as they flow, and checked against finite differences."""
