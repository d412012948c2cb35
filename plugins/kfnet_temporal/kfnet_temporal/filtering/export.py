"""Coordinate and flow maps of every frame, in the files that the published evaluation writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kfnet_temporal.common.formats import coordinate_map, flow_map
from kfnet_temporal.common.grid import FeatureGrid
from kfnet_temporal.filtering.process import Process, process_std
from kfnet_temporal.filtering.tracker import Step
from reloc_core.errors import ConfigError
from reloc_core.types import Float64Array


class MapExport:
    """Writes `coord_I.npy` (h, w, 4), `I_J_flow.npy` (h, w, 3), J = I + 1, and `image_list.txt`.

    I counts the frames from 0 in the order in which they come. A flow lies on the grid of frame I; the
    first frame of a sequence has none that leads to it. Cells stand for their centres.

    Args:
        folder: made where it is missing.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.count = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "image_list.txt").write_text("", "utf-8")
        except OSError as error:
            raise ConfigError(
                f"estimator.export={folder} is no folder that can be written to ({error.strerror})."
            ) from None

    def write(self, name: str, step: Step, variance_factor: float, origin: Float64Array) -> None:
        """Add a frame's posterior; the confidence is 1 / std in 1 / m."""
        points = step.posterior.mean.permute(1, 2, 0).cpu().double().numpy() + origin
        std = (step.posterior.variance * variance_factor).sqrt().cpu().numpy()
        np.save(self.folder / f"coord_{self.count}.npy", coordinate_map(points, std))
        with (self.folder / "image_list.txt").open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")
        self.count += 1

    @torch.inference_mode()
    def write_flow(
        self, process: Process, before: FeatureGrid, now: FeatureGrid, step: Step, factor: float
    ) -> None:
        """Add the flow from the last frame to this one, before `write` adds the frame itself.

        Args:
            process: the flow and its noise.
            before: the last frame.
            now: this frame.
            step: of this frame.
            factor: on the noise; the confidence is 1 over what the filter adds, in 1 / m.
        """
        images = (now.grey, before.grey) if process.refine else None
        motion = process.motion(now.features, before.features, images)
        std = process_std(process, motion, step.posterior) * factor
        flow = motion.flow.permute(1, 2, 0).cpu().numpy()
        path = self.folder / f"{self.count - 1}_{self.count}_flow.npy"
        np.save(path, flow_map(flow, std.cpu().numpy()))
