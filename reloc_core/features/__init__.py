"""Image features shared by plugins: XFeat, visual words and pretrained weights.

These modules need PyTorch and the extra `reloc[features]`; nothing else of the core imports them.
"""
