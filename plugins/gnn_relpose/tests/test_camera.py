"""What the matches of a query make of its camera."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gnn_relpose.matched.focal import Believed, believed_camera
from gnn_relpose.matched.scene import Scene

from reloc_core.geometry import inverse, pose_plus
from reloc_core.types import Camera, RelativePoses

CAMERA = Camera.pinhole(525.0, 640, 480)


def matched(seed, cells=200, references=4):
    """A scene of a few references, and the rays (N, K, 2) of their cells in a query."""
    rng = np.random.default_rng(seed)
    poses = np.stack(
        [pose_plus(np.eye(4), 0.1 * rng.standard_normal(6)) for _ in range(references)]
    )
    rays = rng.uniform([-0.5, -0.4], [0.5, 0.4], (references, cells, 2)).astype(np.float32)
    depth = rng.uniform(1.0, 3.0, (references, cells)).astype(np.float32)
    scene = Scene(
        poses, rays, 1 / depth, np.zeros((references, cells, 64), np.int8),
        np.zeros((references, 128)), torch.zeros(references, 8), 2.0, 1.0,
        tuple("abcd"[:references]),
    )  # fmt: skip
    local = np.concatenate([rays, np.ones((references, cells, 1))], 2) * depth[..., None]
    world = np.einsum("nij,nkj->nki", poses[:, :3, :3], local) + poses[:, None, :3, 3]
    query = inverse(pose_plus(np.eye(4), 0.1 * rng.standard_normal(6)))
    there = world @ query[:3, :3].T + query[:3, 3]
    seen = there[..., :2] / there[..., 2:] + 0.004 * rng.standard_normal((references, cells, 2))
    return scene, seen


def believed(scene, seen):
    stats = np.ones((*seen.shape[:2], 3))
    return believed_camera(CAMERA, scene, np.arange(len(seen)), seen, stats)


def test_matches_that_agree_with_the_camera_raise_no_doubt():
    for seed in range(5):
        assert believed(*matched(seed)) == Believed(CAMERA, pytest.approx(np.zeros((6, 6))))


@pytest.mark.parametrize("kind", ["sheared", "shifted", "squashed"])
def test_a_wrong_camera_is_doubted(kind):
    for seed in range(5):
        scene, seen = matched(seed)
        if kind == "sheared":
            seen[..., 0] += 0.15 * seen[..., 1]
        elif kind == "shifted":
            seen += [0.18, -0.08]
        else:
            seen[..., 1] *= 0.8
        found = believed(scene, seen)
        assert found.doubt > 2
        assert np.linalg.eigvalsh(found.spread)[0] > -1e-12


def test_what_is_doubted_is_in_the_errors_of_all_references():
    poses = np.repeat(np.eye(4)[None], 3, 0)
    covariances = np.repeat(1e-4 * np.eye(6)[None], 3, 0)
    given = RelativePoses(poses, poses, covariances=covariances, correlation=0.2)
    doubt = Believed(CAMERA, 1e-2 * np.eye(6), 3.0).in_evidence(given)
    assert doubt.covariances == pytest.approx(covariances + 1e-2 * np.eye(6))
    assert doubt.correlation == 1.0
    assert Believed(CAMERA).in_evidence(given) is given
