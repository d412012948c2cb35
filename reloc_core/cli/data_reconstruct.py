"""`reloc data reconstruct`: poses of photos, a video or a bag."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from reloc_core.config import plain
from reloc_core.reconstruction import ReconstructOptions, reconstruct
from reloc_core.runs import console


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb."""
    options = ReconstructOptions.of(plain(cfg))
    content = reconstruct(options)
    describe(content, options)
    console.print(
        f"Look at {options.output}/report.html. Next: reloc train experiment=landmarks/default "
        f"dataset=colmap dataset.root={options.output} dataset.holdout=0 map_dir=MAP",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def describe(content: dict[str, object], options: ReconstructOptions) -> None:
    """Tell what a reconstruction came to."""
    images = content["images"]
    assert isinstance(images, list)
    world = content["world"]
    assert isinstance(world, dict)
    lines = [
        f"{options.output}: {content['registered']} of {len(images)} images registered, "
        f"{content['points']} points, reprojection error {content['reprojection_error_px']:.2f} px.",
        f"Unit: {content['unit']} ({world['source']}).",
    ]
    others = content["other_models"]
    if isinstance(others, list) and others:
        lines.append(
            f"Several places, or too little overlap: the largest model was kept; others of "
            f"{', '.join(map(str, others))} images were left out."
        )
    reasons: dict[str, list[str]] = {}
    for image in images:
        if image["reason"]:
            kind = image["reason"].partition(" (")[0].partition(":")[0]
            reasons.setdefault(kind, []).append(image["name"])
    for kind, names in reasons.items():
        lines.append(
            f"Not registered, {kind}: {len(names)} ({names[0]}{', ...' if names[1:] else ''})"
        )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
