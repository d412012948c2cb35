"""The folder of a reconstruction, without one."""

from reloc_core.reconstruction import workspace


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
