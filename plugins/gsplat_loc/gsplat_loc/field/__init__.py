"""The field: its Gaussians, their descriptors, its files and what it looks like."""
