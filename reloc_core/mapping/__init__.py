"""Posed images to points, once for all methods: views, pairs, matches, tracks, triangulation.

    describe -> choose_pairs -> match_pairs -> build_tracks | star_points
                `---- match_images ----'       (triangulate with the poses fixed)

`reconstruct` runs the whole chain. Nothing here imports PyTorch: a detector is whatever has a method
`detect(images, count)`, such as `reloc_core.features.keypoints.KeypointDetector`.
"""

from reloc_core.mapping.cover import Cover
from reloc_core.mapping.features import Detector, Features, describe, spread_frames, tell_used
from reloc_core.mapping.guidance import expected_in_view
from reloc_core.mapping.matching import match_pairs, mutual_matches, typical_depth
from reloc_core.mapping.observations import Observations
from reloc_core.mapping.pairs import choose_pairs, evenly, farthest_points, pose_features
from reloc_core.mapping.reconstruction import (
    Matches,
    Reconstruction,
    ReconstructionOptions,
    TooFewPointsError,
    match_images,
    mean_colors,
    reconstruct,
    require_points,
)
from reloc_core.mapping.tracks import Tracks, build_tracks, star_points
from reloc_core.mapping.triangulation import Points, triangulate, two_view_depths
from reloc_core.mapping.views import View, make_view, pinhole_camera, resample, resample_depth

__all__ = [
    "Cover",
    "Detector",
    "Features",
    "Matches",
    "Observations",
    "Points",
    "Reconstruction",
    "ReconstructionOptions",
    "TooFewPointsError",
    "Tracks",
    "View",
    "build_tracks",
    "choose_pairs",
    "describe",
    "evenly",
    "expected_in_view",
    "farthest_points",
    "make_view",
    "match_images",
    "match_pairs",
    "mean_colors",
    "mutual_matches",
    "pinhole_camera",
    "pose_features",
    "reconstruct",
    "require_points",
    "resample",
    "resample_depth",
    "spread_frames",
    "star_points",
    "tell_used",
    "triangulate",
    "two_view_depths",
    "typical_depth",
]
