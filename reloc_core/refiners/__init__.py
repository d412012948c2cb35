"""Refiners of the core: what improves a pose after any estimator and solver."""
