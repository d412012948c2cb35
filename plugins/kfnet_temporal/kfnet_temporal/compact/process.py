"""The process of the compact preset: a narrow OFlowNet on frozen features."""

from __future__ import annotations

from kfnet_temporal.compact.networks import NarrowOFlowNet
from kfnet_temporal.published.process import OflowProcess


class NarrowProcess(OflowProcess):
    """Flow and process noise by the narrow OFlowNet.

    Args:
        resolution: shorter side in pixels of the images that the features describe.
        min_std: metres; smallest noise.
        divide: the published widths are divided by this.
    """

    def __init__(self, resolution: int, min_std: float, divide: int) -> None:
        super().__init__(resolution, min_std, NarrowOFlowNet(divide))
