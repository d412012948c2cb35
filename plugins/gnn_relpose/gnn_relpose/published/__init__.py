"""RelPose-GNN as published: network, conventions, checkpoints, files."""
