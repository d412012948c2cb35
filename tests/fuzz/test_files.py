"""Files that people receive from others, damaged at random: an answer or a `RelocError`, nothing else."""

import io
import json
import tarfile
import zipfile

import cv2
import numpy as np
import pytest
import torch
from fuzzing import MEGABYTES, hold, mutated_bytes, mutated_json, mutated_text, peak_megabytes

from reloc_core.datasets.colmap import ColmapDataset
from reloc_core.datasets.config import ColmapConfig, KaptureConfig, TransformsConfig
from reloc_core.datasets.kapture import KaptureDataset
from reloc_core.datasets.transforms import TransformsDataset
from reloc_core.features.weights import read_state_dict
from reloc_core.io.archives import extract
from reloc_core.io.colmap import write_model
from reloc_core.io.headers import read_header
from reloc_core.io.images import decode_image, exif_focal
from reloc_core.io.kapture import write_kapture
from reloc_core.io.poselists import read_pose_list
from reloc_core.io.poses import read_pose, read_pose_log
from reloc_core.io.transforms import write_transforms
from reloc_core.types import Camera, Frame

PIL = pytest.importorskip("PIL.Image")
COUNTS = [pytest.param(150, id="short"), pytest.param(10_000, marks=pytest.mark.long, id="long")]
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
SEED = 7


def pose(x):
    found = np.eye(4)
    found[0, 3] = x
    return found


def picture(size=(24, 18), seed=0):
    return np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)


@pytest.fixture(scope="module")
def frames():
    camera = Camera("OPENCV", 24, 18, (20, 21, 11.5, 8.5, 0.01, 0, 0.001, 0))
    return [Frame(f"images/{i}.png", camera, pose(0.1 * i)) for i in range(5)]


@pytest.fixture
def scene(tmp_path, frames):
    (tmp_path / "images").mkdir()
    for i, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / frame.name), picture(seed=i))
    return tmp_path


def run(count, read, change, valid=0.02):
    """All cases; some of them must be answers, or the mutations are too coarse to test anything."""
    rng, before = np.random.default_rng(SEED), peak_megabytes()
    answers = 0
    for case in range(count):
        change(rng)
        answers += hold(read, case, SEED)
    assert answers >= valid * count
    assert peak_megabytes() - before < MEGABYTES


@pytest.mark.parametrize("count", COUNTS)
def test_transforms_json(scene, frames, count):
    write_transforms(scene / "transforms.json", frames)
    content = json.loads((scene / "transforms.json").read_text())
    content["train_filenames"] = [f.name for f in frames[:3]]

    def change(rng):
        if rng.random() < 0.8:
            data = json.dumps(mutated_json(content, rng)).encode()
        else:
            data = mutated_bytes(json.dumps(content).encode(), rng)
        (scene / "transforms.json").write_bytes(data)

    def read():
        dataset = TransformsDataset(TransformsConfig(root=str(scene), split="train"))
        assert all(np.isfinite(f.world_from_cam).all() for f in dataset.frames)
        dataset[0]

    run(count, read, change)


def test_deeply_nested_json(scene):
    (scene / "transforms.json").write_text('{"frames": ' + "[" * 100_000)
    with pytest.raises(Exception, match="valid JSON"):
        TransformsDataset(TransformsConfig(root=str(scene)))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("text", [True, False])
def test_colmap(scene, frames, count, text):
    write_model(scene, frames, text=text)
    names = [f"{name}.{'txt' if text else 'bin'}" for name in ("images", "cameras")]
    originals = {name: (scene / name).read_bytes() for name in names}

    def change(rng):
        for name, data in originals.items():
            (scene / name).write_bytes(data)
        name = names[int(rng.integers(2))]
        changed = mutated_bytes(originals[name], rng)
        if text:
            changed = mutated_text(originals[name].decode(), rng)
        (scene / name).write_bytes(changed)

    def read():
        dataset = ColmapDataset(ColmapConfig(root=str(scene), split="all", images="."))
        assert all(np.isfinite(f.world_from_cam).all() for f in dataset.frames)
        dataset[0]

    run(count, read, change)


@pytest.mark.parametrize("count", COUNTS)
def test_kapture(tmp_path, frames, count):
    for i, frame in enumerate(frames):
        path = tmp_path / "sensors" / "records_data" / frame.name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(seed=i))
    write_kapture(tmp_path, frames)
    names = ["sensors.txt", "records_camera.txt", "trajectories.txt"]
    originals = {name: (tmp_path / "sensors" / name).read_bytes() for name in names}

    def change(rng):
        for name, data in originals.items():
            (tmp_path / "sensors" / name).write_bytes(data)
        name = names[int(rng.integers(3))]
        changed = mutated_text(originals[name].decode(), rng)
        (tmp_path / "sensors" / name).write_bytes(changed)

    def read():
        dataset = KaptureDataset(KaptureConfig(root=str(tmp_path), split="all"))
        dataset[0]

    run(count, read, change)


@pytest.mark.parametrize("count", COUNTS)
def test_pose_files(tmp_path, count):
    identity = "1 0 0 0 0.1 0.2 0.3"
    kinds = [
        (read_pose, "1 0 0 0\n0 1 0 0\n0 0 1 2.5\n0 0 0 1\n"),
        (read_pose_log, f"# c\na.png {identity} 0.5 0.01 30\nb.png {identity} 0.5 0.01 9\n"),
        (read_pose_list, f"a.png {identity} 500\nb.png {identity} 500\n"),
    ]
    path, chosen = tmp_path / "poses.txt", [kinds[0]]

    def change(rng):
        chosen[0] = kinds[int(rng.integers(len(kinds)))]
        path.write_bytes(mutated_text(chosen[0][1], rng))

    run(count, lambda: chosen[0][0](path), change)


def encoded():
    """Small images of every kind and coding."""
    image, made = PIL.fromarray(picture()), []
    exif, turned = PIL.Exif(), PIL.Exif()
    exif[0x0112] = turned[0x0112] = 6
    exif[0x8769] = {0xA405: 36}
    for kind, options in (
        ("JPEG", {"exif": exif}), ("JPEG", {"progressive": True}), ("PNG", {"exif": exif}),
        ("WEBP", {"exif": exif}), ("WEBP", {"lossless": True}), ("TIFF", {"exif": turned}),
        ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}), ("PPM", {}),
    ):  # fmt: skip
        file = io.BytesIO()
        image.save(file, kind, **options)
        made.append(file.getvalue())
    made.append(cv2.imencode(".png", picture()[..., 0].astype(np.uint16) * 257)[1].tobytes())
    return made


@pytest.mark.parametrize("count", COUNTS)
def test_images(tmp_path, count):
    originals, path = encoded(), tmp_path / "a"
    state = [b""]

    def change(rng):
        original = originals[int(rng.integers(len(originals)))]
        # Most damage is found by checksums; numbers in the header are what decoders stumble over.
        if rng.random() < 0.5:
            head = int(rng.integers(20, 120))
            state[0] = mutated_bytes(original[:head], rng) + original[head:]
        else:
            state[0] = mutated_bytes(original, rng)
        path.write_bytes(state[0])

    def read():
        try:
            exif_focal(path)
        finally:
            header = read_header(path)
            image = decode_image(state[0])
            assert image.shape == (header.height, header.width, 3)

    run(count, read, change)


@pytest.mark.parametrize("count", COUNTS)
def test_state_dicts(tmp_path, count):
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.int64)}
    originals = []
    for legacy in (False, True):
        file = io.BytesIO()
        torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)
        originals.append(file.getvalue())
    path = tmp_path / "weights.pt"

    def change(rng):
        path.write_bytes(mutated_bytes(originals[int(rng.integers(2))], rng))

    run(count, lambda: read_state_dict(path, "network"), change)


def archives():
    made, content = [], {"a/b.txt": b"hello " * 50, "c.bin": bytes(range(256)) * 4}
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", packing) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        made.append(file.getvalue())
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode, format=tarfile.PAX_FORMAT) as archive:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size, info.pax_headers = len(data), {"comment": "x" * 40}
                archive.addfile(info, io.BytesIO(data))
        made.append(file.getvalue())
    return made


@pytest.mark.parametrize("count", COUNTS)
def test_archives(tmp_path, count):
    originals, path = archives(), tmp_path / "data.archive"
    number = [0]

    def change(rng):
        path.write_bytes(mutated_bytes(originals[int(rng.integers(len(originals)))], rng))
        number[0] += 1

    def read():
        folder = tmp_path / f"out{number[0]}"
        folder.mkdir()
        extract(path, folder)

    run(count, read, change, valid=0.005)
    # Nothing was written beside the folders.
    assert {p.name.rstrip("0123456789") for p in tmp_path.iterdir()} == {"data.archive", "out"}
