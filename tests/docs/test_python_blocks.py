"""Every Python block of README and docs runs, in order, in a folder as the reader of its page has it.

The plugin that docs/plugins.md builds by hand is written out from the page, installed, tested by the test
that the page shows, and maps the room that the other pages use.
"""

import contextlib
import io
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import cv2
import numpy as np
import pytest

from reloc_core import Camera, registry
from reloc_core.cli.main import main
from reloc_core.geometry import inverse, project, transform
from reloc_core.hooks import ENTRY_POINT_GROUP

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(
    r"^(`{3,})(?:\{code-block\} )?(python|toml)[^\n]*\n(?::caption: (\S+)\n\n)?(.*?)^\1\s*$"
    r"(?:\n+```text\n(.*?)^```\s*$)?",
    re.DOTALL | re.MULTILINE,
)
ROOM = ("dataset=synthetic", "dataset.train_frames=40", "dataset.width=320", "dataset.height=240")
# What blocks are given beyond what they show, so that they take seconds.
QUICKER = {
    'build({"_target_": "synthetic", "split": "test"': (
        'build({"_target_": "synthetic", "split": "test", "width": 320, "height": 240'
    ),
}


def blocks(page):
    """(language, caption, code, output shown below) of the blocks of a page."""
    for _, language, caption, code, shown in BLOCK.findall((ROOT / page).read_text("utf-8")):
        yield language, caption, code, shown


def pages():
    found = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md")]
    found += ROOT.glob("examples/*/README.md")
    names = sorted(page.relative_to(ROOT).as_posix() for page in found)
    return [name for name in names if any(b[0] == "python" for b in blocks(name))]


@pytest.fixture(scope="module")
def orb_map(tmp_path_factory):
    """The distribution of docs/plugins.md, installed; returns its folder."""
    folder = tmp_path_factory.mktemp("orb_map")
    (folder / "orb_map").mkdir()
    (folder / "orb_map/__init__.py").touch()
    for _, caption, code, _ in blocks("docs/plugins.md"):
        if caption:
            file = folder / caption.removeprefix("orb_map/" if "toml" in caption else "")
            file.parent.mkdir(exist_ok=True)
            file.write_text(code)
    assert 'orb_map = "orb_map.plugin"' in (folder / "pyproject.toml").read_text()
    entries = registry._entry_points
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        point = EntryPoint("orb_map", "orb_map.plugin", ENTRY_POINT_GROUP)
        patch.setattr(registry, "_entry_points", lambda: [*entries(), point])
        registry.default_registry.cache_clear()
        yield folder
    registry.default_registry.cache_clear()


@pytest.fixture(scope="module")
def reader(orb_map, tmp_path_factory):
    """A folder with a map of the room, a photograph of it and a list of poses."""
    from reloc_core.testing import room

    folder = tmp_path_factory.mktemp("reader")
    arguments = [*ROOM, "threads=1", f"map_dir={folder / 'maps/room'}"]
    assert main(["train", "estimator=orb_map", *arguments, f"output_dir={folder / 'run'}"]) == 0
    photo = cv2.resize(room("test", 4)[1].image, (640, 480))
    cv2.imwrite(str(folder / "photo.jpg"), photo[..., ::-1])
    (folder / "MAP").symlink_to("maps/room")
    (folder / "photos/train").mkdir(parents=True)
    cv2.imwrite(str(folder / "photos/train/0001.jpg"), photo[..., ::-1])
    (folder / "estimates").mkdir()
    (folder / "estimates/chess_hloc.txt").write_text("a.png 1 0 0 0 0.1 0.2 0.3 525.0\n")
    return folder


# ------------------------------------------------------------------------ what blocks take as given


def problem():
    """Points of a scene in two cameras of a rig."""
    rng = np.random.default_rng(0)
    camera = Camera.pinhole(525.0, 640, 480)
    poses = [np.eye(4), np.eye(4)]
    poses[1][:3, 3] = [0.2, 0.0, 0.0]
    points = [rng.uniform([-1, -1, 2], [1, 1, 4], (200, 3)) for _ in poses]
    pixels = [
        project(camera, transform(inverse(pose), p))[0]
        for pose, p in zip(poses, points, strict=True)
    ]
    return camera, np.stack(poses), points, pixels


def solver_names():
    from reloc_core import solvers

    camera, poses, points, pixels = problem()
    return {
        "points2d": pixels[0], "points3d": points[0], "camera": camera, "camera_a": camera,
        "camera_b": camera, "pixels_a": pixels[0], "pixels_b": pixels[1], "points_a": points[0],
        "points_b": points[1], "rig_from_cam": poses,
        "estimate_generalized_absolute_pose": solvers.estimate_generalized_absolute_pose,
    }  # fmt: skip


def batch_names():
    camera, _, points, pixels = problem()
    return {"points2d": [pixels[0]] * 2, "points3d": [points[0]] * 2, "camera": [camera] * 2}


def gaussian_names():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return {
        "means": torch.rand(9, 3) + torch.tensor([-0.5, -0.5, 2.0]), "quaternions": torch.ones(9, 4),
        "scales": torch.full((9, 3), 0.1), "opacities": torch.full((9,), 0.9),
        "coefficients": torch.rand(9, 4, 3), "features": torch.rand(9, 5),
        "world_from_cam": torch.eye(4, dtype=torch.float64), "fx": 50.0, "fy": 50.0, "cx": 31.5,
        "cy": 23.5, "width": 64, "height": 48,
    }  # fmt: skip


def hook_names():
    from collections.abc import Sequence

    from reloc_core import hookimpl

    return {"hookimpl": hookimpl, "Sequence": Sequence, "Path": Path, "__file__": __file__}


def field_map():
    """A field of 20 Gaussians in place of the reader's map."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("gsplat_loc")
    from gsplat_loc.field.fieldmap import Anchors, Descriptors, FieldMap
    from gsplat_loc.field.gaussians import Gaussians

    from reloc_core.testing import start_run

    Path("MAP").unlink()
    gaussians = Gaussians(torch.rand(20, 3), torch.rand(20, 4, 3), torch.rand(20),
                          torch.rand(20, 3) - 3, torch.ones(20, 4))  # fmt: skip
    run = start_run(Path("MAP"), "gsplat_loc", plugin="gsplat_loc")
    many = Descriptors(torch.zeros(20, 64).half(), torch.zeros(20).half(), torch.zeros(20).int())
    few = Anchors(torch.zeros(4, 3), torch.zeros(4, 64), torch.zeros(4).int(), torch.zeros(4),
                  torch.zeros(4, 3, dtype=torch.uint8), torch.zeros(4, 8).int())  # fmt: skip
    field = FieldMap(gaussians, np.zeros(3), torch.zeros(3), many, few, 1.0)
    field.save(run)
    run.map.finish()
    return {}


def official_files():
    """An encoder and a head as the ACE authors distribute them, with random numbers."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("scr_glace")
    from scr_glace.networks.encoder import AceEncoder
    from scr_glace.networks.head import Head, HeadSpec
    from scr_glace.official.checkpoints import write_head

    torch.save(AceEncoder().state_dict(), "ace_encoder_pretrained.pt")
    write_head(Head(HeadSpec(512, 512), torch.zeros(1, 3)), Path("7scenes_chess.pt"))
    return {}


GIVEN = {
    "docs/datasets.md": lambda: {"my_pose": lambda path: np.eye(4)},
    "docs/gpu.md": batch_names,
    "docs/gsplat_loc.md": field_map,
    "docs/plugins.md": hook_names,
    "docs/rendering.md": gaussian_names,
    "docs/scr_glace.md": official_files,
    "docs/solvers.md": solver_names,
}


def its_dataset(names):
    dataset = names["MyDataset"](names["MyConfig"](root="photos"))
    assert dataset[0].name == "0001.jpg"
    assert dataset[0].image.shape == (480, 640, 3)


def its_focal_length(names):
    assert names["estimate"].world_from_rig == pytest.approx(np.eye(4), abs=1e-6)


def its_batch(names):
    assert [e.success for e in names["estimates"]] == [True, True]


def its_rendering(names):
    assert names["output"].image.shape == (48, 64, 8)
    names["output"].image.sum().backward()
    assert names["twist"].grad.abs().sum() > 0


def its_submission(names):
    assert (Path("submission.txt").read_text()).startswith("a.png ")


def its_head(names):
    import torch

    first, second = (
        torch.load(f"{n}.pt", weights_only=True) for n in ("7scenes_chess", "chess_again")
    )
    assert all(torch.equal(first[key], second[key]) for key in first.keys() | second.keys())


def its_ply(names):
    assert Path("field.ply").read_bytes().startswith(b"ply")


def its_result(names):
    assert names["scene_map"].info.dataset["frames"] == 40
    assert names["metrics"].localized == 10
    assert Path("outputs/room/localizations.jsonl").is_file()


# What must have come of a page's blocks.
AFTERWARDS = {
    "docs/datasets.md": its_dataset,
    "docs/formats.md": its_submission,
    "docs/gpu.md": its_batch,
    "docs/gsplat_loc.md": its_ply,
    "docs/python_api.md": its_result,
    "docs/rendering.md": its_rendering,
    "docs/scr_glace.md": its_head,
    "docs/solvers.md": its_focal_length,
}


def shape_of(output):
    """Output without its numbers."""
    output = re.sub(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", "#", output)
    return re.sub(r"\s+", " ", output).replace("[ ", "[").replace(" ]", "]").strip()


@pytest.mark.parametrize("page", pages())
def test_python_blocks_run(page, reader, tmp_path, monkeypatch):
    for name in ("maps", "MAP", "photo.jpg", "photos", "estimates"):
        (tmp_path / name).symlink_to(reader / name)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page", **GIVEN.get(page, dict)()}
    for language, caption, code, shown in blocks(page):
        if language != "python" or caption:  # a file of the plugin
            continue
        for text, quicker in QUICKER.items():
            code = code.replace(text, quicker)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, page, "exec"), names)
        if shown:
            assert shape_of(out.getvalue()) == shape_of(shown)
    if page in AFTERWARDS:
        AFTERWARDS[page](names)


def test_the_plugin_of_the_docs_passes_its_own_test(orb_map, tmp_path):
    """With the metadata that an installer writes, in a process of its own."""
    info = tmp_path / "reloc_orb_map-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: reloc-orb-map\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[reloc.plugins.v1]\norb_map = orb_map.plugin\n")
    code = (
        f"import sys; sys.path[:0] = {[str(tmp_path), str(orb_map)]!r}; import pytest; "
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(orb_map / 'tests')!r}]))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=orb_map
    )
    assert child.returncode == 0, child.stdout + child.stderr
    assert "1 passed" in child.stdout
