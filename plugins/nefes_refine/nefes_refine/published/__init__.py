"""DFNet and NeFeS as published: networks, training recipe, checkpoints."""
