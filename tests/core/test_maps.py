import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import yaml

from reloc_core.errors import MapError, RelocError
from reloc_core.maps import Map, MapInfo, MapWriter, load_tensors, partial_directory, save_tensors

INFO = MapInfo(
    "estimator", "toy", "toy_plugin", "1.0", {"size": 3}, {"name": "room", "fingerprint": "ab"}
)


def finished(path):
    writer = MapWriter(path, INFO)
    writer.save("head", {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"kind": "toy"})
    writer.details["points"] = 5
    return writer.finish()


def test_round_trip(tmp_path):
    made = finished(tmp_path / "map")
    tensors, metadata = Map.open(tmp_path / "map").tensors("head", "np")
    np.testing.assert_array_equal(tensors["w"], np.arange(6).reshape(2, 3))
    assert metadata == {"kind": "toy"}
    assert made.info.details == {"points": 5}
    assert made.info.config == {"size": 3}
    assert sorted(os.listdir(tmp_path)) == ["map"]
    assert sorted(os.listdir(tmp_path / "map")) == ["head.safetensors", "map.yaml"]


def test_a_part_has_files_and_a_checkpoint_of_its_own(tmp_path):
    writer = MapWriter(tmp_path / "map", INFO)
    part = writer.part("inner")
    writer.save("head", {"w": np.zeros(2)}, {})
    part.save("head", {"w": np.ones(2)}, {"kind": "inner"})
    part.save_checkpoint({"w": np.ones(1)}, {"step": 3})
    assert not writer.has_checkpoint
    again = MapWriter(tmp_path / "map", INFO)
    assert again.part("inner").load_checkpoint()[1] == {"step": 3}
    part.details["points"] = 4
    assert "points" not in writer.details
    part.scratch.joinpath("big").write_bytes(b"x")
    made = writer.finish()
    assert made.tensors("head", "np")[0]["w"].tolist() == [0, 0]
    tensors, metadata = made.part("inner").tensors("head", "np")
    assert tensors["w"].tolist() == [1, 1]
    assert metadata == {"kind": "inner"}
    assert sorted(os.listdir(tmp_path / "map")) == [
        "head.safetensors", "inner.head.safetensors", "map.yaml",
    ]  # fmt: skip


def test_unfinished_map_is_no_map(tmp_path):
    MapWriter(tmp_path / "map", INFO).save("head", {"w": np.zeros(2)}, {})
    with pytest.raises(MapError, match="interrupted"):
        Map.open(tmp_path / "map")
    with pytest.raises(MapError, match="no map"):
        Map.open(tmp_path / "elsewhere")


def test_checkpoint_survives_and_is_discarded_at_the_end(tmp_path):
    MapWriter(tmp_path / "map", INFO).save_checkpoint({"w": np.ones(3)}, {"step": 7})
    again = MapWriter(tmp_path / "map", INFO)
    tensors, metadata = again.load_checkpoint()
    assert metadata == {"step": 7}
    assert tensors["w"].tolist() == [1, 1, 1]
    again.save("head", {"w": np.ones(3)}, {})
    again.finish()
    assert sorted(os.listdir(tmp_path / "map")) == ["head.safetensors", "map.yaml"]


def test_checkpoints_are_read_where_pytorch_is_not_installed(tmp_path, monkeypatch):
    MapWriter(tmp_path / "map", INFO).save_checkpoint({"w": np.ones(3)}, {"step": 7})
    monkeypatch.setitem(sys.modules, "torch", None)
    tensors, _ = MapWriter(tmp_path / "map", INFO).load_checkpoint()
    assert isinstance(tensors["w"], np.ndarray)


def test_checkpoint_of_another_run_is_refused(tmp_path):
    MapWriter(tmp_path / "map", INFO).save_checkpoint({"w": np.ones(3)}, {})
    other = MapInfo("estimator", "toy", "toy_plugin", "1.0", {"size": 4}, dict(INFO.dataset))
    with pytest.raises(MapError, match="another configuration"):
        MapWriter(tmp_path / "map", other)
    assert not MapWriter(tmp_path / "map", other, resume=False).has_checkpoint


def test_existing_targets_are_not_replaced(tmp_path):
    finished(tmp_path / "map")
    with pytest.raises(MapError, match="overwrite=true"):
        MapWriter(tmp_path / "map", INFO)
    writer = MapWriter(tmp_path / "map", INFO, overwrite=True)
    writer.save("other", {"w": np.ones(1)}, {})
    writer.finish()
    assert (tmp_path / "map" / "other.safetensors").exists()
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("x")
    with pytest.raises(MapError, match="not replacing"):
        MapWriter(photos, INFO, overwrite=True)
    assert (photos / "a.jpg").exists()


def test_other_format_version(tmp_path):
    finished(tmp_path / "map")
    file = tmp_path / "map" / "map.yaml"
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**content, "format_version": 99}))
    with pytest.raises(MapError, match="format 99.*reads format 1"):
        Map.open(tmp_path / "map")


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "yaml"])
def test_damaged_maps_are_refused(tmp_path, damage):
    finished(tmp_path / "map")
    file = tmp_path / "map" / "head.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[:-4])
    elif damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "delete":
        file.unlink()
    else:
        (tmp_path / "map" / "map.yaml").write_text("format_version: [1")
    with pytest.raises(MapError, match="truncated|corrupt|missing|damaged"):
        Map.open(tmp_path / "map").tensors("head", "np")


def test_map_yaml_runs_no_code(tmp_path):
    finished(tmp_path / "map")
    marker = tmp_path / "ran"
    (tmp_path / "map" / "map.yaml").write_text(
        f"format_version: !!python/object/apply:os.system ['touch {marker}']"
    )
    with pytest.raises(MapError, match="damaged"):
        Map.open(tmp_path / "map")
    assert not marker.exists()


def test_map_cannot_name_files_outside(tmp_path):
    finished(tmp_path / "map")
    file = tmp_path / "map" / "map.yaml"
    content = yaml.safe_load(file.read_text())
    content["files"]["../secret.safetensors"] = {"bytes": 1, "sha256": ""}
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(MapError, match="outside"):
        Map.open(tmp_path / "map")


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": np.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(MapError, match="truncated or corrupt"):
        load_tensors(path, "np")


def test_kill_while_writing_leaves_the_old_checkpoint(tmp_path):
    # A process that rewrites its checkpoint without end, killed at an arbitrary moment.
    script = textwrap.dedent(f"""
        import numpy as np
        from reloc_core.maps import MapInfo, MapWriter
        info = MapInfo("estimator", "toy", "p", "1", {{}}, {{}})
        writer = MapWriter({str(tmp_path / "map")!r}, info)
        step = 0
        while True:
            step += 1
            writer.save_checkpoint({{"w": np.full(200_000, float(step))}}, {{"step": step}})
            print(step, flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 20:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    tensors, metadata = load_tensors(
        partial_directory(tmp_path / "map") / "checkpoint.safetensors", "np"
    )
    assert metadata["step"] >= 20
    assert (tensors["w"] == metadata["step"]).all()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_explained(tmp_path, monkeypatch):
    import errno

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = MapWriter(tmp_path / "map", INFO)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RelocError, match="disk is full"):
        writer.save("head", {"w": np.ones(3)}, {})
    assert not list(partial_directory(tmp_path / "map").glob("*.safetensors"))


def test_helper_processes_write_nothing(tmp_path):
    writer = MapWriter(tmp_path / "map", INFO, primary=False)
    writer.save("head", {"w": np.ones(3)}, {})
    writer.save_checkpoint({"w": np.ones(3)}, {})
    assert os.listdir(tmp_path) == []


def test_map_yaml_is_plain(tmp_path):
    finished(tmp_path / "map")
    content = yaml.safe_load((tmp_path / "map" / "map.yaml").read_text())
    assert json.loads(json.dumps(content)) == content


def test_what_was_saved_can_be_read_before_the_map_is_finished(tmp_path):
    writer = MapWriter(tmp_path / "map", MapInfo("estimator", "x", "p", "0", {}, {}))
    inner = writer.part("inner")
    inner.save("values", {"a": np.arange(3.0)}, {"n": 3})
    inner.save_checkpoint({"a": np.zeros(1)}, {})
    tensors, metadata = inner.so_far().tensors("values", "np")
    assert tensors["a"].tolist() == [0, 1, 2]
    assert metadata["n"] == 3
    with pytest.raises(MapError, match="holds no"):
        writer.so_far().tensors("values", "np")
