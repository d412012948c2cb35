"""Landmarks that a query is matched with, guided by a first pose: what photographs are read by."""
