"""Kalman-filtered scene coordinates over a sequence, as a plugin of reloc."""
