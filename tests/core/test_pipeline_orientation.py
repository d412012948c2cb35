"""A pipeline localizes upright and answers for the stored pixels."""

import numpy as np
import pytest

from reloc_core.errors import ConfigError
from reloc_core.geometry import project
from reloc_core.orientation import Turn
from reloc_core.pipeline import Pipeline
from reloc_core.types import Camera, Correspondences, Localization, Query, Status

POINTS = np.random.default_rng(0).uniform([-1, -1, 2], [1, 1, 4], (30, 3))
CAMERA = Camera("OPENCV", 64, 48, (60, 58, 30, 25, 0.02, 0, 0.003, -0.004))


class Upright:
    """Knows the scene in upright images only: those whose first row is white."""

    history = 0
    uses_prior = False

    def start_sequence(self):
        pass

    def estimate_batch(self, queries):
        return [self.estimate(q) for q in queries]

    def estimate(self, query):
        if not (query.image[0] == 255).all():
            return Correspondences(np.zeros((0, 2)), np.zeros((0, 3)), reason="not upright")
        return Correspondences(project(query.camera, POINTS)[0], POINTS)

    def pictures(self, query, localization):
        assert (query.image[0] == 255).all()
        np.testing.assert_allclose(localization.world_from_cam, np.eye(4), atol=1e-12)
        return {"seen": query.image}


class Known:
    """The upright camera stands at the origin."""

    def solve_batch(self, evidence, cameras, runtime):
        return [
            Localization(
                Status.LOCALIZED,
                world_from_cam=np.eye(4),
                covariance=np.diag(np.arange(1.0, 7)),
                score=0.5,
            )
            if len(e.points2d)
            else Localization.failure(e.reason)
            for e in evidence
        ]


def query(quarters, orientation):
    """The upright image turned back by `quarters` clockwise turns, as a camera held so stores it."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[0] = 255
    upright = Query("a", CAMERA, image=image)
    stored = Turn(quarters).inverse.query(upright)
    return Query("a", stored.camera, orientation=orientation, image=stored.image)


@pytest.mark.parametrize(("quarters", "tag"), [(0, 1), (2, 3), (1, 6), (3, 8)])
@pytest.mark.parametrize("how", ["exif", "any"])
def test_the_pose_explains_the_stored_pixels(quarters, tag, how):
    # Without a tag only trying helps.
    given = query(quarters, tag if how == "exif" else 1)
    pipeline = Pipeline(Upright(), Known(), orientation=how)
    evidence, found = pipeline.localize_with_evidence(given)
    assert found.localized
    pose = found.world_from_cam
    seen = project(given.camera, (POINTS - pose[:3, 3]) @ pose[:3, :3])[0]
    np.testing.assert_allclose(seen, evidence.points2d, atol=1e-9)
    assert given.camera.width == given.image.shape[1]
    assert dict(found.stages)["solve"] == pytest.approx(pose)
    if how == "exif":
        assert pipeline.pictures(given, found)["seen"].shape == (48, 64, 3)
        np.testing.assert_allclose(pipeline.estimate(given).points2d, evidence.points2d, atol=1e-9)


def test_only_any_tries():
    given = query(1, 1)
    assert Pipeline(Upright(), Known()).localize(given).reason == "not upright"
    moving = Query("a", given.camera, sequence="video", image=given.image)
    assert not Pipeline(Upright(), Known(), orientation="any").localize(moving).localized
    with pytest.raises(ConfigError, match="orientation must be exif or any"):
        Pipeline(Upright(), Known(), orientation="all")
