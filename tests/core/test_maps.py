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


def test_arrays_are_kept_whatever_their_memory_looks_like(tmp_path):
    """A slice, a transpose and a scalar: the library writes memory as it lies."""
    whole = np.arange(48.0).reshape(3, 4, 4)
    arrays = {"slice": whole[:, :3], "turned": whole[0].T, "scalar": np.array(2.0)}
    writer = MapWriter(tmp_path / "map", INFO)
    writer.save("part", arrays, {})
    found, _ = writer.finish().tensors("part", "np")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


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


OTHER = MapInfo("estimator", "toy", "toy_plugin", "1.0", {"size": 3}, {"name": "room2"})

WRITE = """
import sys, time
import numpy as np
from reloc_core.maps import MapInfo, MapWriter
info = MapInfo("estimator", "toy", "toy_plugin", "1.0", {{"size": 3}}, {{"name": "room"}})
writer = MapWriter({path!r}, info)
writer.save_checkpoint({{"w": np.ones(3)}}, {{"step": 1}})
print("writing", flush=True)
{then}
"""


def writing(path, then="time.sleep(60)"):
    script = WRITE.format(path=str(path), then=then)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_second_writer_is_told_who_is_writing(tmp_path):
    first = writing(tmp_path / "map")
    try:
        with pytest.raises(MapError, match=f"being written by process {first.pid} on this machine"):
            MapWriter(tmp_path / "map", INFO, resume=False, overwrite=True)
        assert MapWriter(tmp_path / "other", INFO).path.name == "other"
    finally:
        first.kill()
        first.wait()
    # A kill leaves the file of the lock, but nobody who holds it.
    with pytest.raises(MapError, match="another dataset"):
        MapWriter(tmp_path / "map", OTHER)
    assert MapWriter(tmp_path / "map", OTHER, resume=False).has_checkpoint is False


def test_children_of_a_killed_writer_do_not_keep_its_lock(tmp_path):
    then = "import os\nif os.fork() == 0:\n    print(os.getpid(), flush=True)\ntime.sleep(60)"
    first = writing(tmp_path / "map", then)
    child = int(first.stdout.readline())
    try:
        first.kill()
        first.wait()
        os.kill(child, 0)
        MapWriter(tmp_path / "map", OTHER, resume=False).close()
    finally:
        os.kill(child, signal.SIGKILL)
    assert not (tmp_path / ".map.lock").exists()


def test_another_thread_of_this_process_is_another_writer(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    writer = MapWriter(tmp_path / "map", INFO)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(MapError, match="this very process"):
            pool.submit(MapWriter, tmp_path / "map", INFO).result()
        writer.close()
        pool.submit(lambda: MapWriter(tmp_path / "map", INFO).finish()).result()
    assert sorted(os.listdir(tmp_path)) == ["map"]


def test_where_files_cannot_be_locked_the_process_number_decides(tmp_path, monkeypatch):
    import errno
    import fcntl
    import socket

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    lock = tmp_path / ".map.lock"
    lock.write_text(json.dumps({"pid": 1, "host": socket.gethostname()}))
    with pytest.raises(MapError, match="process 1 on"):
        MapWriter(tmp_path / "map", INFO)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock.write_text(json.dumps({"pid": ended.pid, "host": socket.gethostname()}))
    MapWriter(tmp_path / "map", INFO).finish()
    assert sorted(os.listdir(tmp_path)) == ["map"]


def test_a_failed_write_at_the_start_leaves_the_checkpoint_usable(tmp_path, monkeypatch):
    MapWriter(tmp_path / "map", INFO).save_checkpoint({"w": np.ones(3)}, {"step": 7})

    def fails(*_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fails)
        broken.setattr(os, "replace", fails)
        assert MapWriter(tmp_path / "map", INFO).has_checkpoint  # nothing has to be written
        with pytest.raises(RelocError, match="disk is full"):
            MapWriter(tmp_path / "new", INFO)
    assert MapWriter(tmp_path / "map", INFO).load_checkpoint()[1] == {"step": 7}


def test_files_beyond_the_limit_of_the_shell_are_explained(tmp_path):
    script = WRITE.format(path=str(tmp_path / "map"), then="").replace(
        "print(",
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "from reloc_core.errors import RelocError\n"
        "try:\n    writer.save_checkpoint({'w': np.ones(5000)}, {'step': 2})\n"
        "except RelocError as error:\n    print(error)\n"
        "print(",
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "larger than the file system" in done.stdout, done.stderr
    assert MapWriter(tmp_path / "map", MapInfo(
        "estimator", "toy", "toy_plugin", "1.0", {"size": 3}, {"name": "room"}
    )).load_checkpoint()[1] == {"step": 1}  # fmt: skip


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    "text",
    [BOMB, "[" * 5000, "config: " + "{a: " * 3000, "x: " + "9" * 100_000, "x: " + "1:" * 9000 + "1",
     "- 1", "3", "", "\0", "a: !!python/name:os.system", "x: 2001-99-99", "? [a]\n: b"],
)  # fmt: skip
def test_strange_descriptions_are_refused(tmp_path, text):
    finished(tmp_path / "map")
    (tmp_path / "map" / "map.yaml").write_text(text)
    with pytest.raises(MapError):
        Map.open(tmp_path / "map")


@pytest.mark.parametrize(
    "key", ["config", "pipeline", "details", "dataset", "files", "unit", "component"]
)
@pytest.mark.parametrize("value", [[1], 3, None, {"a": {1: 2}}, "x"])
def test_descriptions_of_the_wrong_kind_are_refused(tmp_path, key, value):
    finished(tmp_path / "map")
    file = tmp_path / "map" / "map.yaml"
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**content, key: value}))
    if isinstance(value, str) and key in ("unit", "component"):
        assert getattr(Map.open(tmp_path / "map").info, key) == "x"
    else:
        with pytest.raises(MapError, match="damaged"):
            Map.open(tmp_path / "map")


def test_a_config_of_a_map_is_text_and_resolves_nothing(tmp_path, monkeypatch):
    from dataclasses import field, make_dataclass

    from reloc_core.config import config_of_map
    from reloc_core.registry import Component

    monkeypatch.setenv("SECRET", "seen")
    texts = ["${oc.env:SECRET}", "a${b}", "\\${x}", "a\\b${", "${${x}}", "$", "\\"]
    component = Component(
        "dataset",
        "toy",
        "a.b:C",
        make_dataclass("C", [("texts", list, field(default_factory=list))]),
        "",
    )
    info = MapInfo("dataset", "toy", "p", "1", {"texts": texts}, {})
    scene_map = MapWriter(tmp_path / "map", info).finish()
    assert config_of_map(component, scene_map).texts == texts
    old = MapInfo("dataset", "toy", "p", "0.1", {"gone": 1}, {})
    scene_map = MapWriter(tmp_path / "old", old).finish()
    with pytest.raises(MapError, match="made by p 0.1.*'gone'.*reloc train dataset=toy"):
        config_of_map(component, scene_map)


def test_tensors_are_checked_against_what_is_expected(tmp_path):
    writer = MapWriter(tmp_path / "map", INFO)
    values = {"p": np.zeros((4, 3), np.float32), "s": np.ones(4), "bad": np.array([np.nan])}
    writer.save("head", values, {})
    made = writer.finish()
    assert made.tensors("head", "np", {"p": ("n", 3), "s": ("n",)})[0]["s"].sum() == 4
    for expect in ({"p": ("n", 2)}, {"p": ("n",)}, {"q": (1,)}, {"p": ("n", "n")}, {"bad": (1,)}):
        for framework in ("np", "pt"):
            with pytest.raises(MapError, match=r"head\.safetensors"):
                made.tensors("head", framework, expect)


def test_what_a_component_makes_of_wrong_contents_names_the_map():
    from reloc_core.maps import loading

    cause = "MAP holds what estimator 'x' cannot use .KeyError: 'w'"
    with pytest.raises(MapError, match=cause), loading("MAP", "estimator 'x'"):
        {}["w"]
    with pytest.raises(MapError, match="^mine$"), loading("MAP", "estimator 'x'"):
        raise MapError("mine")


def test_rooms_with_equal_poses_have_different_fingerprints(tmp_path):
    from reloc_core.config import build
    from reloc_core.maps import dataset_identity

    rooms = [
        build({"_target_": "synthetic", "train_frames": 3, "width": 64, "height": 48, "seed": s}, "dataset")
        for s in (0, 1, 0)
    ]  # fmt: skip
    first, second, again = (dataset_identity(room) for room in rooms)
    assert first["fingerprint"] != second["fingerprint"]
    assert first == again
