"""Datasets: images with intrinsics and, where known, poses and depth."""
