"""Localization against a field of 3D Gaussians that carry descriptors (after GSplatLoc)."""
