import numpy as np
import pytest

from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.room.furniture import ROOM_SIZE, furnish
from reloc_core.datasets.room.render import Renderer
from reloc_core.datasets.room.store import Store
from reloc_core.datasets.room.surfaces import Model
from reloc_core.datasets.synthetic import SyntheticDataset, trajectory
from reloc_core.errors import ConfigError
from reloc_core.geometry import inverse, lift, project, transform
from reloc_core.types import Camera

SMALL = {"width": 160, "height": 120, "train_frames": 24, "test_frames": 8}


def small(**options):
    return SyntheticDataset(SyntheticConfig(**{**SMALL, **options}))


def brute_force_depth(surfaces, origin, direction):
    """Nearest hit of one ray in float64 world coordinates, by textbook formulas per shape."""
    best = np.inf
    for s in surfaces:
        if s.kind in ("quad", "disc"):
            matrix = np.stack([s.edge_u, s.edge_v, -direction], 1)
            if abs(np.linalg.det(matrix)) < 1e-12 or (origin - s.origin) @ s.normal <= 1e-4:
                continue
            u, v, t = np.linalg.solve(matrix, origin - s.origin)
            inside = (
                (u - 0.5) ** 2 + (v - 0.5) ** 2 <= 0.25
                if s.kind == "disc"
                else 0 <= u <= 1 and 0 <= v <= 1
            )
            if inside and t > 0:
                best = min(best, t)
            continue
        keep = np.array([1, 1, 1 if s.kind == "sphere" else 0.0])
        p, d = (origin - s.origin) * keep, direction * keep
        roots = np.roots([d @ d, 2 * p @ d, p @ p - s.radius**2])
        if np.isreal(roots).all():
            t = roots.real.min()
            z = (origin + t * direction - s.origin)[2]
            if t > 0 and (s.kind == "sphere" or 0 <= z <= s.height):
                best = min(best, t)
    return best


def test_depth_agrees_with_brute_force():
    surfaces = furnish(0).surfaces
    dataset = small(noise=0)
    rng = np.random.default_rng(0)
    wrong = 0
    for index in (0, 7, 13, 19):
        query = dataset[index]
        pose = query.world_from_cam
        for x, y in zip(rng.integers(0, 160, 25), rng.integers(0, 120, 25), strict=True):
            ray = np.array(
                [
                    (x - query.camera.cx) / query.camera.fx,
                    (y - query.camera.cy) / query.camera.fy,
                    1,
                ]
            )
            expected = brute_force_depth(surfaces, pose[:3, 3], pose[:3, :3] @ ray)
            wrong += abs(query.depth[y, x] / expected - 1) > 1e-4
    assert wrong <= 1  # float32 may decide an edge otherwise


def test_depth_of_a_single_wall_is_the_analytic_plane():
    model = Model(np.random.default_rng(0), np.array(ROOM_SIZE))
    grey = lambda rng, h, w: np.full((h, w, 3), 128, np.uint8)  # noqa: E731
    # The plane x = 4 facing -x, much larger than the view.
    model.quad(np.array([4.0, 50, 50]), np.array([0, -100.0, 0]), np.array([0, 0, -100.0]), grey, 1)
    pose = np.eye(4)
    angle = 0.4
    forward = np.array([np.cos(angle), np.sin(angle), 0])
    pose[:3, :3] = np.stack([np.array([forward[1], -forward[0], 0]), [0, 0, -1], forward], 1)
    camera = Camera.pinhole(90, 64, 48)
    depth = Renderer(model.surfaces).depth(camera, pose)
    y, x = np.mgrid[:48, :64]
    points = transform(pose, lift(camera, np.stack([x, y], -1).astype(float), depth))
    np.testing.assert_allclose(points[..., 0], 4.0, atol=1e-4)
    # At the optical axis: distance to the plane along a direction turned by the angle.
    center = Renderer(model.surfaces).depth(Camera.pinhole(90, 65, 49), pose)[24, 32]
    assert center == pytest.approx(4 / np.cos(angle), rel=1e-5)


def test_pixels_depth_and_poses_agree_between_frames():
    """Warp one frame into the next by depth and pose: colours must agree where depth does."""
    dataset = small(noise=0, width=320, height=240, train_frames=100)
    for i in (0, 30, 71):
        a, b = dataset[i], dataset[i + 1]
        y, x = np.mgrid[4:236, 4:316]
        pixels = np.stack([x, y], -1).astype(float)
        points = transform(a.world_from_cam, lift(a.camera, pixels, a.depth[4:236, 4:316]))
        local = transform(inverse(b.world_from_cam), points)
        target, _ = project(b.camera, local)
        near = np.rint(target).astype(int)
        ok = ((near >= 1) & (near < (319, 239))).all(-1)
        assert ok.mean() > 0.8
        found = b.depth[near[ok][:, 1], near[ok][:, 0]]
        visible = np.abs(found - local[ok][:, 2]) < 0.02 * found
        assert visible.mean() > 0.9

        def error(shift, a=a, b=b, ok=ok, visible=visible, near=near, pixels=pixels):
            there = near[ok][visible] + shift
            here = pixels[ok][visible].astype(int)
            delta = b.image[there[:, 1], there[:, 0]].astype(int) - a.image[here[:, 1], here[:, 0]]
            return np.abs(delta).mean()

        # Exact pixels explain the image better than a displacement by one pixel in any direction.
        best = error((0, 0))
        assert best < 8
        assert all(error(np.array(s)) > 1.3 * best for s in ((1, 0), (-1, 0), (0, 1), (0, -1)))


def test_everything_repeats_and_seeds_differ():
    a, b = small()[3], small()[3]
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.depth, b.depth)
    assert not np.array_equal(a.image, small()[4].image)
    other = small(seed=1)[3]
    assert np.abs(a.image.astype(int) - other.image).mean() > 3
    a.image[:] = 0  # the cache must not be the caller's array
    dataset = small()
    dataset[3].image[:] = 0
    assert dataset[3].image.any()


def test_noise_has_the_given_strength():
    clean, noisy = small(noise=0)[0].image, small(noise=4)[0].image
    middle = (clean > 30) & (clean < 225)
    assert (noisy.astype(int) - clean)[middle].std() == pytest.approx(4, rel=0.1)


def test_metadata():
    dataset = small(split="test", depth=False)
    assert dataset.name == "synthetic/test"
    assert len(dataset) == len({f.name for f in dataset.frames}) == 8
    assert not dataset.has_depth
    assert dataset[0].depth is None
    assert dataset[-1].name == dataset[7].name
    times = [f.timestamp for f in dataset.frames]
    assert times == sorted(times)
    assert np.array_equal(dataset[-1].image, dataset[7].image)


@pytest.mark.parametrize("split", ["train", "test"])
def test_paths_are_smooth_and_inside_the_room(split):
    poses = trajectory(split, 200)
    rotation = poses[:, :3, :3]
    np.testing.assert_allclose(
        np.swapaxes(rotation, 1, 2) @ rotation, np.tile(np.eye(3), (200, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1)
    assert (poses[:, :3, 3] > 0.5).all()
    assert (poses[:, :3, 3] < np.array(ROOM_SIZE) - 0.5).all()
    assert (rotation[:, 2, 1] < -0.9).all()  # image y points down in the world
    closed = np.concatenate([poses, poses[:1]])
    assert np.linalg.norm(np.diff(closed[:, :3, 3], axis=0), axis=1).max() < 0.08


def test_test_views_differ_from_training_views_but_are_near():
    train, test = trajectory("train", 200), trajectory("test", 60)
    gap = np.linalg.norm(test[:, None, :3, 3] - train[None, :, :3, 3], axis=-1).min(1)
    assert 0.05 < np.median(gap) < 0.4
    assert gap.max() < 0.6


def test_the_camera_keeps_clear_of_things():
    for split in ("train", "test"):
        dataset = small(split=split)
        assert min(q.depth.min() for q in dataset) > 0.4
        assert all((q.depth > 0).all() for q in dataset)


@pytest.mark.parametrize(
    "options",
    [
        {"split": "val"},
        {"width": 8},
        {"train_frames": 0},
        {"noise": -1},
        {"seed": -1},
        {"copy": -1},
        {"west": [-1]},
    ],
)
def test_bad_options(options):
    with pytest.raises(
        ConfigError, match=f"dataset.{next(iter(options))}|dataset.width|neighbours"
    ):
        small(**options)


def test_a_mirrored_room_lies_where_its_depth_and_poses_put_it():
    """Every point is the reflection of the one that the plain room shows at the mirrored pixel."""
    plain, mirrored = small()[5], small(mirrored=True)[5]
    assert np.isclose(np.linalg.det(mirrored.world_from_cam[:3, :3]), 1)
    columns, rows = np.meshgrid(np.arange(160.0), np.arange(120.0))
    pixels = np.stack([columns.ravel(), rows.ravel()], 1)

    def points(query):
        return transform(query.world_from_cam, lift(query.camera, pixels, query.depth.ravel()))

    flipped = np.arange(160 * 120).reshape(120, 160)[:, ::-1].ravel()
    expected = points(plain)[flipped] * [-1, 1, 1] + [ROOM_SIZE[0], 0, 0]
    np.testing.assert_allclose(points(mirrored), expected, atol=1e-4)
    np.testing.assert_array_equal(small(mirrored=True, noise=0)[5].image,
                                  small(noise=0)[5].image[:, ::-1])  # fmt: skip


def test_shared_things_look_the_same_whatever_the_seed():
    """A wall's poster is the same in shared rooms; the bookcase is every room's own."""

    def textures(seed, shared):
        return [s.texture for s in furnish(seed, shared).surfaces]

    mine, other, plain = textures(3, True), textures(4, True), textures(3, False)
    same = [
        a.shape == b.shape and (a == b).all() for a, b in zip(mine[-60:], other[-60:], strict=True)
    ]
    assert all(same)
    changed = [
        a.shape != b.shape or (a != b).any() for a, b in zip(mine[-60:], plain[-60:], strict=True)
    ]
    assert any(changed)
    own = [a.shape != b.shape or (a != b).any() for a, b in zip(mine[:6], other[:6], strict=True)]
    assert all(own)


def test_kept_images_are_read_again_unless_they_are_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("RELOC_CACHE", str(tmp_path))
    rendered = [small(cache=True, seed=9)[i].image for i in range(2)]
    files = sorted(tmp_path.glob("rooms/*/*.png"))
    assert [f.stem for f in files] == ["000000", "000001"]
    monkeypatch.setattr("reloc_core.datasets.synthetic._recent.get", lambda key, make: make())
    drawn = []
    color = Renderer.color
    monkeypatch.setattr(Renderer, "color", lambda *a: drawn.append(a) or color(*a))
    files[1].write_bytes(b"no picture")
    for index, image in enumerate(rendered):
        np.testing.assert_array_equal(small(cache=True, seed=9)[index].image, image)
    assert len(drawn) == 1


def test_kept_rooms_stay_within_their_limit(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    for room in range(6):
        Store((room,), tmp_path, limit=40_000).keep(0, image)
    sizes = [sum(f.stat().st_size for f in folder.iterdir()) for folder in tmp_path.iterdir()]
    assert sum(sizes) <= 40_000 + max(sizes)
    assert 2 <= len(sizes) < 6
    np.testing.assert_array_equal(Store((5,), tmp_path).read(0), image)
    assert Store((0,), tmp_path).read(0) is None
