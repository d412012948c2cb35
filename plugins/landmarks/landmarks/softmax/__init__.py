"""Landmarks that a softmax over trained keys reads: what films are read by."""
