"""What every component has to do, whatever its interface."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from reloc_core.config import TARGET, build, typed_config
from reloc_core.errors import ConfigError
from reloc_core.geometry import so3_log
from reloc_core.interfaces import INTERFACES, Dataset, Runtime
from reloc_core.registry import Component, default_registry
from reloc_core.testing.tools import as_query, room
from reloc_core.types import Float64Array, Localization, Query

_HEAVY = ("torch", "cv2", "matplotlib", "hydra", "kornia", "pycolmap")


class ComponentConformance:
    """Base of the suites.

    Attributes:
        component: registered name of the component under test; required.
        options: of its config, nested as in YAML, such as `{"keypoints": {"query": 300}}`.
    """

    interface: ClassVar[str]
    component: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def described(cls) -> Component:
        """The component's registration."""
        name = getattr(cls, "component", None)
        if not isinstance(name, str):
            raise pytest.UsageError(f'{cls.__name__} must say: component = "NAME".')
        return default_registry().get(cls.interface, name)

    def test_its_description_agrees_with_its_class(self) -> None:
        component = self.described()
        assert component.summary, "the summary is what `reloc plugin list` shows"
        loaded = component.load()
        assert issubclass(loaded, INTERFACES[self.interface])
        produces = getattr(getattr(loaded, "produces", None), "kind_name", None)
        assert component.produces == produces
        accepts = {kind.kind_name for kind in getattr(loaded, "accepts", ())}
        assert set(component.accepts) == accepts

    def test_its_plugin_is_light(self) -> None:
        """`reloc --help` imports every plugin, so heavy packages wait until a component is built."""
        component = self.described()
        module = default_registry().plugins[component.plugin].module
        code = (
            f"import sys, importlib; importlib.import_module({module!r}); "
            f"print(*(m for m in {_HEAVY!r} if m in sys.modules))"
        )
        child = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
        )
        assert child.stdout.split() == [], "imported while the plugin registers"

    def test_options_are_typed(self) -> None:
        component = self.described()
        typed_config(component, self.buildable_options())
        with pytest.raises(ConfigError, match="no option 'no_such_option'"):
            typed_config(component, self.buildable_options(), {"no_such_option": 1})

    def test_builds_from_a_config(self) -> None:
        built = build({TARGET: self.component, **self.buildable_options()}, self.interface)
        assert isinstance(built, INTERFACES[self.interface])

    def buildable_options(self) -> Mapping[str, Any]:
        """Options that the component can be constructed with."""
        return self.options


class MappedConformance(ComponentConformance):
    """What the suites of estimators and refiners share: a walk through the embedded room is mapped.

    Attributes:
        train_frames: images of the mapped walk.
        query_frames: images of the other walk that are localized or refined.
        width: of the images.
        height: of the images.
        covariance_slack: by which factor typical squared errors may be off from the covariances.
        block_slack: by which factor rotation and translation may be off from each other in that.
        tolerance: largest difference between poses that must agree (metres, radians).
        threads: the component may use.
    """

    train_frames: ClassVar[int] = 60
    query_frames: ClassVar[int] = 6
    width: ClassVar[int] = 320
    height: ClassVar[int] = 240
    covariance_slack: ClassVar[float] = 70.0
    block_slack: ClassVar[float] = 10.0
    tolerance: ClassVar[float] = 1e-5
    threads: ClassVar[int] = 1

    @classmethod
    def train_dataset(cls) -> Dataset:
        """What is mapped."""
        return room("train", cls.train_frames, cls.width, cls.height)

    @classmethod
    def query_dataset(cls) -> Dataset:
        """What is localized or refined; with ground truth."""
        return room("test", cls.query_frames, cls.width, cls.height)

    @classmethod
    def runtime(cls) -> Runtime:
        """CPU and few threads."""
        return Runtime(threads=cls.threads)

    def query(self, query: Query) -> Query:
        """A query as the component may see it."""
        return as_query(query, "depth" in self.described().requires)


def check_localization(localization: Localization) -> None:
    """Assert that the values of a localization are possible ones."""
    assert np.isfinite(localization.score)
    assert 0 <= localization.score <= 1
    assert localization.num_inliers >= 0
    if localization.localized:
        assert localization.world_from_cam is not None
        check_rigid(localization.world_from_cam)
    else:
        assert localization.reason
    if localization.covariance is not None:
        check_covariance(localization.covariance)


def check_rigid(pose: Float64Array) -> None:
    """Assert that a matrix is a rigid transform (4, 4) in float64."""
    assert pose.shape == (4, 4)
    assert pose.dtype == np.float64
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6)
    assert np.linalg.det(pose[:3, :3]) > 0
    np.testing.assert_array_equal(pose[3], [0, 0, 0, 1])


def check_covariance(covariance: Float64Array) -> None:
    """Assert that a matrix is a covariance (6, 6)."""
    assert covariance.shape == (6, 6)
    assert np.isfinite(covariance).all()
    scale = max(float(np.abs(covariance).max()), 1e-30)
    np.testing.assert_allclose(covariance, covariance.T, atol=1e-9 * scale)
    assert np.linalg.eigvalsh(covariance).min() >= -1e-9 * scale


def check_honest_covariances(
    found: Sequence[Localization],
    truths: Sequence[Float64Array | None],
    slack: float,
    block_slack: float,
) -> None:
    """Assert that errors are of the size that their covariances say, in rotation and translation alike.

    Skips the test where nothing says a covariance.

    Args:
        found: localizations with covariances.
        truths: world_from_cam of each; None where it is unknown.
        slack: by which factor the typical squared error may be off from what is said, either way.
        block_slack: by which factor rotation and translation may be off from each other.
    """
    joint, blocks = [], []
    for localization, truth in zip(found, truths, strict=True):
        pose, covariance = localization.world_from_cam, localization.covariance
        if pose is None or covariance is None or truth is None:
            continue
        rotation = pose[:3, :3].T
        moved = rotation @ (truth[:3, 3] - pose[:3, 3])
        xi = np.concatenate([so3_log(rotation @ truth[:3, :3]), moved])
        joint.append(xi @ np.linalg.solve(covariance, xi))
        parts = (slice(0, 3), slice(3, 6))
        blocks.append([xi[p] @ np.linalg.solve(covariance[p, p], xi[p]) for p in parts])
    if not joint:
        pytest.skip("says no covariances")
    # Medians of chi-square distributions with 6 and 3 degrees of freedom.
    share = float(np.median(joint)) / 5.348
    assert 1 / slack < share < slack, f"squared errors are {share:.3g} times what covariances say"
    turn, shift = np.median(blocks, axis=0)
    ratio = float(turn / shift)
    assert 1 / block_slack < ratio < block_slack, (
        f"rotation against translation is off by {ratio:.3g}: rotation comes first, in radians and metres"
    )
