"""From photos, a video or a bag to posed images: structure from motion through pycolmap.

The result is a COLMAP workspace that `dataset=colmap` reads, with the database of features and matches that
later images are added by.
"""

from reloc_core.reconstruction.options import ReconstructOptions, ScaleOptions
from reloc_core.reconstruction.workspace import reconstruct

__all__ = ["ReconstructOptions", "ScaleOptions", "reconstruct"]
