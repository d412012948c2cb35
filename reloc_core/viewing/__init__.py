"""Recordings for the viewer rerun: maps, cameras, estimates and what led to them (extra `view`)."""
