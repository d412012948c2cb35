"""Turned queries: what is found belongs to the stored pixels, for every lens and kind of evidence."""

import math

import numpy as np
import pytest

from reloc_core.errors import InputError
from reloc_core.geometry import project, so3_exp
from reloc_core.orientation import QUARTERS, Turn, in_any_orientation, upright
from reloc_core.types import (
    CAMERA_MODELS,
    Camera,
    Correspondences,
    Localization,
    PosePrior,
    Query,
    RelativePoses,
    Status,
)

PIL = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")


def some_camera(model):
    values = {"f": 60.0, "fx": 61.0, "fy": 58.0, "cx": 30.0, "cy": 25.5}
    lens = {"k1": 0.03, "k2": -0.01, "p1": 0.004, "p2": -0.007}
    params = [values.get(name, lens.get(name, 0.002)) for name in CAMERA_MODELS[model]]
    return Camera(model, 64, 48, tuple(params), 0.1)


def some_pose(seed=0):
    rng = np.random.default_rng(seed)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = so3_exp(rng.normal(0, 1, 3)), rng.normal(0, 2, 3)
    return pose


def some_query(model="OPENCV", orientation=1, **more):
    image = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)
    return Query("a", some_camera(model), orientation=orientation, image=image, **more)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_images_are_turned_as_pillow_turns_them(orientation):
    query = some_query(orientation=orientation)
    picture = PIL.fromarray(query.image)
    exif = picture.getexif()
    exif[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(picture))
    turned, undo = upright(query)
    assert np.array_equal(turned.image, expected)
    assert (turned.camera.height, turned.camera.width) == expected.shape[:2]
    assert turned.orientation == 1
    back = undo.query(turned)
    assert np.array_equal(back.image, query.image)
    assert back.camera.params == pytest.approx(query.camera.params, abs=1e-12)


@pytest.mark.parametrize("orientation", [2, 4, 5, 7])
def test_mirrored_images_stay(orientation):
    query = some_query(orientation=orientation)
    assert upright(query)[0] is query


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("model", sorted(CAMERA_MODELS))
def test_a_point_is_seen_at_the_same_place_of_the_image(model, quarters):
    """Projecting into the turned camera = projecting into the given one and turning the pixels."""
    camera, turn, world_from_cam = some_camera(model), Turn(quarters), some_pose()
    rng = np.random.default_rng(2)
    points = np.column_stack([rng.uniform(-0.6, 0.6, (40, 2)), np.ones(40)]) * rng.uniform(
        1, 3, (40, 1)
    )
    world = points @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]
    given = project(camera, points)[0]
    pose = turn.pose(world_from_cam)
    seen = project(turn.camera(camera), (world - pose[:3, 3]) @ pose[:3, :3])[0]
    np.testing.assert_allclose(seen, turn.pixels(given, camera), atol=1e-9)
    assert turn.camera(camera).focal_sigma == camera.focal_sigma
    # The middle of the corner pixels stays in the corners.
    corner = turn.pixels(np.array([[0.0, 0.0]]), camera)[0]
    assert set(corner) <= {0, turn.camera(camera).width - 1, turn.camera(camera).height - 1}


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_covariance_turns_with_the_camera(quarters):
    """Samples of the error around the turned pose have the turned covariance."""
    turn, pose = Turn(quarters), some_pose(3)
    rng = np.random.default_rng(4)
    root = rng.normal(0, 0.01, (6, 6))
    covariance = root @ root.T
    w, v = np.split(root[:, 0], 2)  # one error, in the axes of the given camera
    true = np.eye(4)
    true[:3, :3], true[:3, 3] = pose[:3, :3] @ so3_exp(w), pose[:3, 3] + pose[:3, :3] @ v
    estimate, truth = turn.pose(pose), turn.pose(true)
    relative = estimate[:3, :3].T @ truth[:3, :3]
    angle = math.acos(min((np.trace(relative) - 1) / 2, 1))
    skewed = (relative - relative.T) / 2 * (angle / math.sin(angle))
    found = np.r_[
        skewed[2, 1], skewed[0, 2], skewed[1, 0],
        estimate[:3, :3].T @ (truth[:3, 3] - estimate[:3, 3]),
    ]  # fmt: skip
    xi, turned = np.r_[w, v], turn.covariance(covariance)
    assert found @ np.linalg.solve(turned, found) == pytest.approx(
        xi @ np.linalg.solve(covariance, xi), rel=1e-6
    )


def test_answers_are_turned_back():
    pose, camera = some_pose(), some_camera("OPENCV")
    found = Localization(
        Status.LOCALIZED, world_from_cam=pose, covariance=np.diag(np.arange(1.0, 7)),
        stages=(("solve", pose),), camera=camera,
    )  # fmt: skip
    for quarters in range(4):
        there = Turn(quarters).localization(found)
        back = Turn(quarters).inverse.localization(there)
        np.testing.assert_allclose(back.world_from_cam, pose, atol=1e-12)
        np.testing.assert_allclose(back.covariance, found.covariance, atol=1e-12)
        np.testing.assert_allclose(back.stages[0][1], pose, atol=1e-12)
        assert back.camera.params == pytest.approx(camera.params, abs=1e-12)
        points = np.random.default_rng(0).uniform(0, 40, (5, 2))
        for evidence in (
            Correspondences(points, np.zeros((5, 3)), points_cam=np.ones((5, 3)) * [1, 2, 3]),
            RelativePoses(pose[None], pose[None], covariances=np.diag(np.arange(1.0, 7))[None]),
            PosePrior(pose, np.diag(np.arange(1.0, 7))),
        ):
            turned = Turn(quarters).evidence(evidence, camera)
            again = Turn(quarters).inverse.evidence(turned, Turn(quarters).camera(camera))
            for name, value in vars(evidence).items():
                if isinstance(value, np.ndarray):
                    np.testing.assert_allclose(getattr(again, name), value, atol=1e-12)
        # What the references see of the world does not change with the query's axes.
        relative = RelativePoses(pose[None], some_pose(1)[None])
        world = pose @ some_pose(1)
        turned = Turn(quarters).evidence(relative, camera)
        np.testing.assert_allclose(
            pose @ turned.ref_from_cam[0], Turn(quarters).pose(world), atol=1e-12
        )


def test_depth_and_prior_turn_with_the_image():
    depth = np.arange(64 * 48, dtype=np.float32).reshape(48, 64)
    query = some_query(orientation=6, depth=depth, prior=PosePrior(some_pose()))
    turned, undo = upright(query)
    assert turned.depth.shape == (64, 48)
    assert turned.depth[0, -1] == depth[0, 0]
    np.testing.assert_allclose(
        undo.query(turned).prior.world_from_cam, query.prior.world_from_cam, atol=1e-12
    )


def test_any_orientation_takes_the_one_that_works():
    query = some_query()
    seen = []

    def localize(given):
        seen.append(given.image.copy())
        ok = np.array_equal(given.image, np.rot90(query.image, -1))
        pose = some_pose()
        found = (
            Localization(Status.LOCALIZED, world_from_cam=pose, score=0.6)
            if ok
            else Localization.failure("no")
        )
        return None, found

    _, found, undo = in_any_orientation(query, localize(query), localize)
    assert found.localized
    assert len(seen) == 4
    np.testing.assert_allclose(
        undo.localization(found).world_from_cam, Turn(3).pose(some_pose()), atol=1e-12
    )
    fail = lambda given: (None, Localization.failure(f"{given.image.shape}"))  # noqa: E731
    _, found, undo = in_any_orientation(query, fail(query), fail)
    assert not found.localized
    assert found.reason == "(48, 64, 3)"
    assert undo == Turn(0)


def test_orientation_values():
    assert QUARTERS == {3: 2, 6: 1, 8: 3}
    with pytest.raises(InputError):
        Query("a", some_camera("PINHOLE"), image=np.zeros((64, 48, 3), np.uint8))
