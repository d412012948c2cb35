"""Improving a pose against the field."""
