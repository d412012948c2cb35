"""Options of the calibration of a map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reloc_core.errors import ConfigError

RIGHT_DEPTHS, RIGHT_DEG = 0.025, 5.0
"""A pose is right within this share of the scene's depth and this angle."""


@dataclass
class CalibrationConfig:
    """How a map's poses are calibrated.

    Attributes:
        enabled: whether at all; without it scores and covariances are the solver's own.
        fraction: share of the mapping images that is held out.
        most: at most so many.
        least_images: smaller maps hold nothing out and get a conservative prior.
        foreign: pictures of other places and of none that are localized beside them.
        min_score: poses of a smaller probability are refused.
    """

    enabled: bool = True
    fraction: float = 0.06
    most: int = 42
    least_images: int = 30
    foreign: int = 48
    min_score: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 0.5 or self.most < 0 or self.foreign < 0:
            raise ConfigError(
                "calibration.fraction must be in 0..0.5, calibration.most and .foreign not negative."
            )
        if not 0 <= self.min_score < 1:
            raise ConfigError("calibration.min_score must be at least 0 and below 1.")

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> CalibrationConfig:
        """From the options of a config.

        Raises:
            ConfigError: an unknown option or a wrong value.
        """
        try:
            merged = OmegaConf.merge(OmegaConf.structured(cls), dict(options or {}))
            config = OmegaConf.to_object(merged)
        except OmegaConfBaseException as error:
            raise ConfigError(f"calibration: {str(error).splitlines()[0]}") from error
        assert isinstance(config, cls)
        return config
