"""Downloads that break, resume, change, lie; archives that are damaged or hostile."""

import errno
import gzip
import hashlib
import io
import json
import random
import stat
import sys
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fetch_server import FileServer

from reloc_core.errors import DataError, RelocError
from reloc_core.io.archives import extract
from reloc_core.io.download import Policy, download

QUICK = Policy(attempts=3, delay=0.0, timeout=5.0)
CONTENT = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    server = FileServer()
    yield server
    server.close()


def get(server, tmp_path, name="a.zip", sha256=SHA, urls=None, **options):
    urls = urls or [f"{server.url}/{name}"]
    return download(urls, tmp_path / "d" / name, sha256, QUICK, **options)


def test_whole_file_and_progress(server, tmp_path):
    server.add("a.zip", CONTENT)
    seen = []
    path = get(server, tmp_path, advance=lambda done, size: seen.append((done, size)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in path.parent.iterdir()] == ["a.zip"]
    # A complete file is not asked for again.
    get(server, tmp_path)
    assert len(server.files["a.zip"].requests) == 1


def test_broken_connections_resume_where_they_stopped(server, tmp_path):
    file = server.add("a.zip", CONTENT, break_after=[100_000, 50_000, 7])
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert file.requests == [None, "bytes=100000-", "bytes=150000-", "bytes=150007-"]


def test_an_interrupted_command_resumes(server, tmp_path):
    file = server.add("a.zip", CONTENT, break_after=[100_000], statuses=[])
    file.break_after = [100_000, 0, 0, 0]
    with pytest.raises(RelocError, match=r"100000 bytes are kept.*run the\s+same command again"):
        get(server, tmp_path)
    assert not (tmp_path / "d" / "a.zip").exists()
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert file.requests[-1] == "bytes=100000-"


@pytest.mark.parametrize("ignore_range", [True, False])
def test_a_file_that_changed_is_fetched_anew(server, tmp_path, ignore_range):
    file = server.add("a.zip", CONTENT, break_after=[1000, 0, 0, 0])
    with pytest.raises(RelocError):
        get(server, tmp_path)
    new = CONTENT[::-1]
    server.add("a.zip", new, etag='"v2"' if not ignore_range else '"v1"', ignore_range=ignore_range)
    path = get(server, tmp_path, sha256=hashlib.sha256(new).hexdigest())
    assert path.read_bytes() == new
    assert file.requests[0] is None


def test_without_a_validator_parts_are_never_glued(server, tmp_path):
    file = server.add("a.zip", CONTENT, etag=None, break_after=[5000])
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert file.requests == [None, None]


def test_a_part_longer_than_the_file_starts_over(server, tmp_path):
    server.add("a.zip", CONTENT)
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a.zip.part").write_bytes(CONTENT + b"xx")
    state = {"url": f"{server.url}/a.zip", "validator": '"v1"', "size": len(CONTENT)}
    (folder / "a.zip.part.json").write_text(json.dumps(state))
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_complete_part_is_not_fetched_again(server, tmp_path):
    file = server.add("a.zip", CONTENT)
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a.zip.part").write_bytes(CONTENT)
    state = {"url": f"{server.url}/a.zip", "validator": '"v1"', "size": len(CONTENT)}
    (folder / "a.zip.part.json").write_text(json.dumps(state))
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert file.requests == []


def test_busy_servers_are_asked_again_and_missing_files_are_not(server, tmp_path):
    file = server.add("a.zip", CONTENT, statuses=[503, 429])
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(file.requests) == 3
    with pytest.raises(RelocError, match="HTTP 404"):
        get(server, tmp_path, "missing.zip")
    path = get(server, tmp_path, "b.zip", urls=[f"{server.url}/missing.zip", f"{server.url}/a.zip"])
    assert path.read_bytes() == CONTENT


def test_no_server_at_all(tmp_path):
    with pytest.raises(RelocError, match="could not be downloaded"):
        download(["http://127.0.0.1:9/a"], tmp_path / "a", None, QUICK)
    with pytest.raises(DataError, match="no http address"):
        download(["file:///etc/passwd"], tmp_path / "a", None, QUICK)


def test_wrong_checksum_is_removed(server, tmp_path):
    server.add("a.zip", CONTENT[:-1] + b"?")
    with pytest.raises(DataError, match=r"SHA-256.*It was removed"):
        get(server, tmp_path)
    assert not [p for p in (tmp_path / "d").iterdir() if p.suffix != ".json"]


def test_size_without_announcement_is_what_came(server, tmp_path):
    server.add("a.zip", CONTENT, announce=False)
    assert get(server, tmp_path).read_bytes() == CONTENT


class Full:
    """A file on a disk that is full after some bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, block):
        if len(block) > self.room:
            self.file.write(block[: self.room])
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(block)
        return self.file.write(block)

    def flush(self):
        self.file.flush()

    def fileno(self):
        return self.file.fileno()


@pytest.mark.parametrize("room", [0, 1, 100_000, 262_144, len(CONTENT) - 1])
def test_a_disk_that_fills_up_while_downloading(server, tmp_path, monkeypatch, room):
    file = server.add("a.zip", CONTENT)
    plain = Path.open

    def full(self, mode="r", *args, **options):
        opened = plain(self, mode, *args, **options)
        return Full(opened, room) if self.suffix == ".part" and mode != "rb" else opened

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(RelocError, match="disk is full"):
            get(server, tmp_path)
    assert len(file.requests) == 1  # a full disk is no reason to try again
    assert not (tmp_path / "d" / "a.zip").exists()
    assert get(server, tmp_path).read_bytes() == CONTENT
    kept = file.requests[-1]
    assert kept == (f"bytes={room}-" if room else None)


def test_too_small_a_disk_is_refused_before_writing(server, tmp_path, monkeypatch):
    server.add("a.zip", CONTENT)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 10_000))
    with pytest.raises(RelocError, match="needs 0.00 GB"):
        get(server, tmp_path)
    assert not (tmp_path / "d" / "a.zip.part").exists()


# ---------------------------------------------------------------------------------------- archives


def make_zip(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def make_tar(path, entries):
    with tarfile.open(path, "w:gz") as file:
        for info, content in entries:
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "inner" / "out"
    folder.mkdir(parents=True)
    return folder


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_extracts_what_is_wanted(tmp_path, out, make):
    archive = make(tmp_path / "a", [("x/1.txt", b"one"), ("x/2.avi", b"two"), ("3.txt", b"")])
    assert extract(archive, out, lambda n: n.endswith(".txt")) == ["x/1.txt", "3.txt"]
    assert files_below(out) == ["3.txt", "x/1.txt"]
    assert (out / "x/1.txt").read_bytes() == b"one"


def test_windows_archives(tmp_path, out):
    archive = make_zip(tmp_path / "a", [("x\\", b""), ("x\\y\\1.txt", b"one")])
    assert extract(archive, out, lambda n: n.startswith("x/y/")) == ["x/y/1.txt"]
    assert files_below(out) == ["x/y/1.txt"]


EVIL = [
    "../evil.txt",
    "/evil.txt",
    "a/../../evil.txt",
    "C:/evil.txt",
    "a\\..\\..\\evil.txt",
    "\\evil.txt",
    "a/\nb",
]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", EVIL)
def test_traversal_is_refused(tmp_path, out, make, name):
    archive = make(tmp_path / "a", [("good.txt", b"x"), (name, b"evil")])
    with pytest.raises(DataError, match="leaves the target folder"):
        extract(archive, out)
    assert files_below(tmp_path) in (["a"], ["a", "inner/out/good.txt"])


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_in_tar_are_refused(tmp_path, out, kind):
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc/passwd"
    archive = make_tar(tmp_path / "a", [(info, b"")])
    with pytest.raises(DataError, match="link or device"):
        extract(archive, out)


def test_links_in_zip_are_refused(tmp_path, out):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = make_zip(tmp_path / "a", [(info, "/etc/passwd")])
    with pytest.raises(DataError, match="link or device"):
        extract(archive, out)
    assert not files_below(out)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_bombs_are_refused(tmp_path, out, make):
    archive = make(tmp_path / "a", [("zeros", bytes(30_000_000))])
    assert archive.stat().st_size < 50_000
    with pytest.raises(DataError, match="hostile"):
        extract(archive, out)
    assert sum(p.stat().st_size for p in out.rglob("*")) == 0


def test_a_zip_that_lies_about_its_size(tmp_path, out):
    archive = make_zip(tmp_path / "a", [("zeros", bytes(2_000_000))])
    raw = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = raw.index(signature) + offset
        raw[at : at + 4] = (100).to_bytes(4, "little")
    archive.write_bytes(raw)
    with pytest.raises(DataError):
        extract(archive, out)
    assert all(p.stat().st_size <= 100 for p in out.rglob("*"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a", "a"), ("A.txt", "a.txt")])
def test_one_name_twice_is_refused(tmp_path, out, names):
    for make in (make_zip, make_tar):
        archive = make(tmp_path / make.__name__, [(name, b"x") for name in names])
        with pytest.raises(DataError, match="twice"):
            extract(archive, out)
        for p in out.iterdir():
            p.unlink()


def test_damaged_and_truncated_archives(tmp_path, out):
    noise = random.Random(1).randbytes(50_000)
    for make in (make_zip, make_tar):
        archive = make(tmp_path / "a", [("one", noise), ("two", noise)])
        whole = archive.read_bytes()
        for end in (0, 10, len(whole) // 2, len(whole) - 10):
            archive.write_bytes(whole[:end])
            with pytest.raises(DataError, match="damaged|truncated"):
                extract(archive, out)
            for p in out.iterdir():
                p.unlink()
        flipped = bytearray(whole)
        flipped[len(whole) // 3] ^= 0xFF
        archive.write_bytes(flipped)
        if make is make_zip:  # a tar has no checksum of its contents; gzip's catches it at the end
            with pytest.raises(DataError, match="damaged"):
                extract(archive, out)
            for p in out.iterdir():
                p.unlink()
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as file:
        file.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    (tmp_path / "b").write_bytes(plain.getvalue()[:512])
    with pytest.raises(DataError, match="truncated"):
        extract(tmp_path / "b", out)
    (tmp_path / "b").write_bytes(gzip.compress(b"no archive"))
    with pytest.raises(DataError, match="no zip or tar"):
        extract(tmp_path / "b", out)


def test_encrypted_zip_is_refused(tmp_path, out):
    archive = make_zip(tmp_path / "a", [("x", b"x")])
    raw = bytearray(archive.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(raw)
    with pytest.raises(DataError, match="encrypted"):
        extract(archive, out)
