"""The method at a size for a CPU: relative poses regressed by a graph network from images alone."""
