"""Constants of the scenes that NeFeS and DFNet were published for.

A published network predicts in the frame of its scene's average pose and renders in the frame of its
`world_setup.json`; both belong to the network like its weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nefes_refine.field.frames import WorldSetup
from reloc_core.errors import ConfigError, did_you_mean
from reloc_core.types import Float64Array

# near, far, pose_scale, pose_scale2, move_all_cam_vec
_SETUPS: dict[str, tuple[float, float, float, float, tuple[float, float, float]]] = {
    "chess": (0.0, 2.0, 0.5, 1.0, (0.0, 0.0, 1.0)),
    "fire": (0.0, 3.0, 1.0, 1.0, (0.0, 0.0, 1.0)),
    "heads": (0.0, 2.5, 1.0, 1.0, (0.0, 0.0, 1.0)),
    "office": (0.0, 2.0, 0.5, 1.0, (0.0, 0.0, 0.5)),
    "pumpkin": (0.0, 2.5, 0.5, 1.0, (0.0, 0.0, 1.0)),
    "redkitchen": (0.0, 2.0, 0.5, 1.0, (0.0, 0.0, 0.5)),
    "stairs": (0.0, 4.0, 1.0, 1.0, (0.0, 0.0, 0.0)),
    "KingsCollege": (0.0, 10.0, 0.3027, 0.2, (0.0, 0.0, 0.0)),
    "OldHospital": (0.0, 10.0, 0.3027, 0.2, (0.0, 0.0, 5.0)),
    "ShopFacade": (0.0, 20.0, 0.3027, 0.32, (0.0, 0.0, 2.5)),
    "StMarysChurch": (0.0, 10.0, 0.3027, 0.2, (0.0, 0.0, 0.0)),
    "GreatCourt": (0.0, 10.0, 0.3027, 0.2, (0.0, 0.0, 0.0)),
}

# Focal lengths of the images 480 pixels high: of the first image of a scene's list, used for all of them.
_FOCALS: dict[str, float] = {
    "chess": 526.22, "fire": 526.903, "heads": 527.745, "office": 525.143, "pumpkin": 525.647,
    "redkitchen": 525.505, "stairs": 525.505,
}  # fmt: skip
_DSLAM_FOCAL, _CAMBRIDGE_FOCAL = 585.0, 744.0

# Bad images that the published data preparation deletes, by position in the sorted list of so many.
_LEFT_OUT: dict[str, tuple[int, tuple[int, ...]]] = {"ShopFacade": (231, (35, 42))}

# 3x4 average poses.
_AVERAGES: dict[str, dict[str, tuple[float, ...]]] = {
    "7scenes_sfm": {
        "chess": (
            0.934056113, -0.0665954175, 0.350862122, -0.423827518,
            0.183885934, 0.931896522, -0.312657696, 0.580344005,
            -0.306145622, 0.356558442, 0.882689603, 0.434117639,
        ),
        "fire": (
            0.961741057, -0.000929583583, 0.273958528, -0.14271345,
            0.0819122631, 0.955225396, -0.284314656, 0.279812697,
            -0.261427849, 0.295877641, 0.918755627, 0.0083428358,
        ),
        "heads": (
            0.980848693, 0.0118917571, -0.194407889, 0.05470922,
            -0.0669311336, 0.957928694, -0.27909289, 0.151154245,
            0.18290999, 0.286759837, 0.940379036, -0.0274821781,
        ),
        "office": (
            0.983354077, 0.0926116063, -0.156326098, 0.154004944,
            -0.109770662, 0.988400946, -0.104947474, 0.91322219,
            0.144793509, 0.120360546, 0.982114137, -0.402125288,
        ),
        "pumpkin": (
            0.999942441, -0.00541787663, 0.00926077144, 0.0817338735,
            0.00447084611, 0.995038725, 0.0993878632, 0.564683054,
            -0.00975329739, -0.099340739, 0.995005674, -0.270997048,
        ),
        "redkitchen": (
            0.947412281, -0.204574118, 0.246088194, -0.321625715,
            0.170499848, 0.973435769, 0.152815594, 0.168761916,
            -0.270813166, -0.10282137, 0.957124859, -0.494288552,
        ),
        "stairs": (
            0.98805477, -0.147670675, 0.0440584046, -0.178877731,
            0.153568746, 0.919740233, -0.361240286, 0.846971794,
            0.0128223097, 0.363691181, 0.931431325, 0.152900798,
        ),
    },
    "7scenes_dslam": {
        "chess": (
            0.935009209, 0.185717264, -0.302104084, 0.421752791,
            -0.0377875802, 0.899228258, 0.435844742, -0.739179742,
            0.352604422, -0.396103065, 0.847804508, 0.299597387,
        ),
        "fire": (
            0.968267534, 0.130846485, -0.212925292, 0.0448326151,
            -0.00961944124, 0.870869033, 0.491420995, -0.420159915,
            0.249730753, -0.473778773, 0.844492881, 0.711590348,
        ),
        "heads": (
            0.982147752, -0.0887213623, 0.16587439, -0.011579799,
            0.0311121659, 0.946258918, 0.32191007, -0.131758375,
            -0.185520421, -0.31100254, 0.932126383, 0.0963678978,
        ),
        "office": (
            0.919221669, -0.238085385, 0.313603049, -0.0258089678,
            0.0888997088, 0.901401843, 0.423758845, -0.878427403,
            -0.383573154, -0.361649093, 0.849753828, 1.06308278,
        ),
        "pumpkin": (
            0.999418949, 0.00723227817, -0.0333085482, -0.0620665836,
            -0.00831075649, 0.999441899, -0.032354628, -0.76906045,
            0.033055961, 0.0326126475, 0.998921278, 0.447226111,
        ),
        "redkitchen": (
            0.939792368, 0.172081622, -0.295259583, 0.106821576,
            -0.155319464, 0.98465996, 0.079502368, -0.475905329,
            0.304411186, -0.0288561585, 0.952103541, 0.977119283,
        ),
        "stairs": (
            0.998104403, 0.0601784615, -0.0128900878, 0.0402675523,
            -0.0470305662, 0.880910964, 0.470939486, -0.942812617,
            0.0396954334, -0.469440546, 0.882071338, 0.385260794,
        ),
    },
    "cambridge": {
        "KingsCollege": (
            0.999508342, -0.0145397466, 0.0277789511, 20.0409516,
            -0.0239596831, 0.217281153, 0.975814959, -23.5401066,
            -0.0202239447, -0.976000766, 0.216825958, 1.65011033,
        ),
        "OldHospital": (
            0.999794125, 0.00623993074, 0.0193072643, 13.1954796,
            -0.00333380744, -0.888089726, 0.459658052, -0.647318485,
            0.0200148175, -0.459627786, -0.887886088, 23.1033301,
        ),
        "ShopFacade": (
            0.208400468, 0.0197209506, 0.977844737, -4.51281794,
            -0.978035333, 0.00830794378, 0.208273536, 1.91489612,
            -0.00401652698, -0.999771005, 0.0210191659, 1.76850011,
        ),
        "StMarysChurch": (
            -0.669200153, 0.743081264, 0.00117905979, 11.1403651,
            0.0389138282, 0.0366292571, -0.998570985, -0.0544126597,
            -0.742062578, -0.668197974, -0.0534284411, 17.0876832,
        ),
        "GreatCourt": (
            0.340529275, 0.495307087, 0.799193783, 47.0450837,
            -0.940231635, 0.181258635, 0.288287667, 34.6778528,
            -0.00206984998, -0.849597667, 0.527427264, 1.10108013,
        ),
    },
}  # fmt: skip


@dataclass(frozen=True)
class SceneConstants:
    """Of one published scene.

    Attributes:
        setup: scales and depth range of the field.
        average: (4, 4) average pose.
        sfm: whether it belongs to the SfM ground truth of 7-Scenes, whose centred frame is not mirrored.
        field_step: the field was trained on every so-many-th image of a sequence.
        regressor_step: the same of the regressor.
        focal: that the field was trained with, whatever the camera; pixels of images 480 high.
        images: in the scene's list of mapping images, for `left_out`; 0 where nothing is left out.
        left_out: positions in this list, sorted by name, of images that nothing was trained on.
    """

    setup: WorldSetup
    average: Float64Array
    sfm: bool
    field_step: int
    regressor_step: int
    focal: float
    images: int = 0
    left_out: tuple[int, ...] = ()


def scene_constants(name: str) -> SceneConstants:
    """Constants by "GROUND_TRUTH/SCENE", such as "7scenes_sfm/chess" or "cambridge/ShopFacade".

    Raises:
        ConfigError: no such scene.
    """
    group, _, scene = name.partition("/")
    known = [f"{g}/{s}" for g, scenes in _AVERAGES.items() for s in scenes]
    if name not in known:
        raise ConfigError(
            f"estimator.scene.constants='{name}' is no published scene.{did_you_mean(name, known)}"
        )
    average = np.eye(4)
    average[:3] = np.array(_AVERAGES[group][scene]).reshape(3, 4)
    outdoor, sfm = group == "cambridge", group == "7scenes_sfm"
    images, left_out = _LEFT_OUT.get(scene, (0, ()))
    return SceneConstants(
        WorldSetup(*_SETUPS[scene]),
        average,
        sfm=sfm,
        field_step=1 if outdoor or scene == "heads" else 2,
        regressor_step=2 if outdoor else 5,
        focal=_CAMBRIDGE_FOCAL if outdoor else _FOCALS[scene] if sfm else _DSLAM_FOCAL,
        images=images,
        left_out=left_out,
    )
