"""Shared leaves: feature grids, labels, losses, files, components within components."""
