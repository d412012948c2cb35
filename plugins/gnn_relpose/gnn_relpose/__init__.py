"""RelPose-GNN as a plugin of reloc: poses relative to retrieved images by a graph network."""
