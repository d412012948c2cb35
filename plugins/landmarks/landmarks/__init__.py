"""Triangulated landmarks, read by a softmax: a plugin of reloc."""
