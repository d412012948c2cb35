"""Refinement of poses by what a field renders."""
