"""The folder of a reconstruction, without one."""

import pytest

from reloc_core.errors import DataError
from reloc_core.reconstruction import ReconstructOptions, reconstruct, workspace


def finished(output):
    (output / "images" / "a").mkdir(parents=True)
    (output / "images" / "a" / "1.jpg").write_bytes(b"image")
    (output / "database.db").write_bytes(b"features")


def test_images_are_added_to_a_copy_of_what_changes(tmp_path):
    output, work = tmp_path / "images" / "place", tmp_path / "images" / ".place.work"
    finished(output)
    workspace._prepare(work, output, "mark", add=True)
    (work / "database.db").write_bytes(b"more features")
    assert (output / "database.db").read_bytes() == b"features"
    assert (work / "images" / "a" / "1.jpg").samefile(output / "images" / "a" / "1.jpg")


def test_a_run_killed_amid_the_swap_loses_nothing(tmp_path, monkeypatch):
    output, work = tmp_path / "place", tmp_path / ".place.work"
    finished(output)
    work.mkdir()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        rename = workspace.Path.rename
        patch.setattr(
            workspace.Path, "rename", lambda a, b: killed() if a == work else rename(a, b)
        )
        with pytest.raises(KeyboardInterrupt):
            workspace._swap(work, output)
    assert not output.exists()
    with pytest.raises(DataError):
        reconstruct(ReconstructOptions(str(tmp_path / "none"), str(output), overwrite=True))
    assert (output / "database.db").read_bytes() == b"features"
