"""Measurement by attention to key frames, and flow without a trained network."""
