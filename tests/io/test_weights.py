"""`reloc weights`: getting, keeping and verifying files; the importers have their tests in the plugins."""

import errno
import hashlib
import io
import json
import pickle
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from fetch_server import FileServer

from reloc_core.cli.main import main
from reloc_core.errors import ConfigError, DataError, MapError, PluginError, RelocError
from reloc_core.io import weights as store
from reloc_core.io.download import Policy
from reloc_core.io.weights import get_weights, verify_file, verify_weights
from reloc_core.registry import default_registry
from reloc_core.weights import Weights

QUICK = Policy(attempts=2, delay=0.0, timeout=5.0)
CONTENT = b"weights:" + bytes(range(256)) * 400
SHA = hashlib.sha256(CONTENT).hexdigest()


def check(path):
    """Stands for an importer: files that begin with "weights:" are good."""
    content = path.read_bytes()
    if not content.startswith(b"weights:"):
        raise MapError(f"{path} is no toy network.")
    return f"{len(content)} bytes"


def spec(**values):
    defaults = {"name": "toy_net", "summary": "a network", "filename": "toy.pt", "licence": "MIT",
                "check": f"{__name__}:check", "urls": ("http://127.0.0.1:9/toy.pt",)}  # fmt: skip
    return Weights(**{**defaults, **values})


@pytest.fixture
def server():
    server = FileServer()
    yield server
    server.close()


def get(weights, root, **options):
    return get_weights(weights, root, policy=QUICK, **options)


def test_a_download_resumes_and_is_kept_with_its_source(server, tmp_path):
    file = server.add("toy.pt", CONTENT, break_after=[1000, 2000])
    weights = spec(urls=(f"{server.url}/toy.pt",), sha256=SHA)
    seen = []
    (found,) = get(weights, tmp_path / "w", advance=lambda done, size: seen.append(done))
    assert file.requests == [None, "bytes=1000-", "bytes=3000-"]
    assert found.path == tmp_path / "w" / "toy_net" / "toy.pt"
    assert found.path.read_bytes() == CONTENT
    assert found.published
    assert seen[-1] == len(CONTENT)
    record = json.loads((found.path.parent / "source.json").read_text())
    assert record["sha256"] == {"toy.pt": SHA}
    assert record["source"].endswith("/toy.pt")
    get(weights, tmp_path / "w")
    assert len(file.requests) == 3  # what is there is verified, not fetched


@pytest.mark.parametrize("digits", [64, 8])
def test_another_checksum_is_refused_and_nothing_stays(server, tmp_path, digits):
    server.add("toy.pt", CONTENT + b"x")
    weights = spec(urls=(f"{server.url}/toy.pt",), sha256=SHA[:digits])
    with pytest.raises(DataError, match="not the published file"):
        get(weights, tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_file_that_its_importer_refuses_is_not_kept(server, tmp_path):
    server.add("toy.pt", b"<html>moved</html>")
    with pytest.raises(MapError, match="no toy network"):
        get(spec(urls=(f"{server.url}/toy.pt",)), tmp_path)
    assert not (tmp_path / "toy_net").exists()
    assert not list(tmp_path.glob(".toy_net*"))


def test_local_file_or_folder(tmp_path):
    mine = tmp_path / "mine" / "deep"
    mine.mkdir(parents=True)
    (mine / "toy.pt").write_bytes(CONTENT)
    for number, source in enumerate((mine / "toy.pt", tmp_path / "mine")):
        (found,) = get(spec(), tmp_path / f"w{number}", source=str(source))
        assert found.path.read_bytes() == CONTENT
        assert not found.published
    for source, match in ((tmp_path / "absent.pt", "no file"), (tmp_path / "w0" / "..", "3 files")):
        with pytest.raises(DataError, match=match):
            get(spec(), tmp_path / "x", source=str(source))
    assert not (tmp_path / "x" / "toy_net").exists()


def test_without_an_address_the_error_says_where_to_get_it(tmp_path):
    with pytest.raises(ConfigError, match=r"get toy\.pt from the README of toy.*from=FILE"):
        get(spec(urls=(), where="the README of toy"), tmp_path)


def test_variants(server, tmp_path):
    server.add("fire.pt", CONTENT)
    weights = spec(
        filename="{variant}.pt", urls=(f"{server.url}/{{variant}}.pt",), variants=("chess", "fire")
    )
    assert get(weights, tmp_path, variant="fire")[0].path == tmp_path / "toy_net-fire" / "fire.pt"
    for variant, match in (("", r"variant=chess\|fire"), ("fir", "Did you mean 'fire'")):
        with pytest.raises(ConfigError, match=match):
            get(weights, tmp_path, variant=variant)
    with pytest.raises(ConfigError, match="no variant 'a'"):
        get(spec(), tmp_path, variant="a")


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


ARCHIVE = {
    "filename": "all.zip",
    "members": ("*nets/*.pt", "*.data-*"),
    "checked": "*.pt",
}


def test_archives_keep_what_is_wanted(server, tmp_path):
    server.add(
        "all.zip",
        zipped(
            {"x/nets/a.pt": CONTENT, "x/nets/b.pt": CONTENT, "x/nets/b.data-0": b"d", "x/log": b"l"}
        ),
    )
    weights = spec(**ARCHIVE, urls=(f"{server.url}/all.zip",))
    found = get(weights, tmp_path)
    assert [v.path.relative_to(tmp_path).as_posix() for v in found] == [
        "toy_net/x/nets/a.pt",
        "toy_net/x/nets/b.pt",
    ]
    assert not list(tmp_path.rglob("log"))
    assert list(tmp_path.rglob("b.data-0"))
    # The unpacked folder is a source, too.
    assert len(get(weights, tmp_path / "again", source=str(tmp_path / "toy_net"))) == 2
    # One bad member spoils the archive.
    server.add("bad.zip", zipped({"x/nets/a.pt": CONTENT, "x/nets/b.pt": b"no"}))
    with pytest.raises(MapError):
        get(spec(**ARCHIVE, urls=(f"{server.url}/bad.zip",)), tmp_path / "bad")
    server.add("empty.zip", zipped({"x/log": b"l"}))
    with pytest.raises(DataError, match="holds none of"):
        get(spec(**ARCHIVE, urls=(f"{server.url}/empty.zip",)), tmp_path / "bad")
    assert not (tmp_path / "bad" / "toy_net").exists()


def hostile(kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("nets/a.pt")
        if kind == "link":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
        elif kind == "traversal":
            info.name, info.size = "../../nets/a.pt", len(CONTENT)
            archive.addfile(info, io.BytesIO(CONTENT))
        else:
            info.size = 300 << 20
            archive.addfile(info, _Zeros(info.size))
    return buffer.getvalue()


class _Zeros(io.RawIOBase):
    def __init__(self, size):
        self.left = size

    def read(self, size=-1):
        size = min(size, self.left)
        self.left -= size
        return bytes(size)


@pytest.mark.parametrize("kind", ["link", "traversal", "bomb"])
def test_hostile_archives_are_refused(server, tmp_path, kind):
    server.add("all.zip", hostile(kind))
    with pytest.raises(DataError, match="hostile"):
        get(spec(**ARCHIVE, urls=(f"{server.url}/all.zip",)), tmp_path / "w")
    assert not (tmp_path / "w" / "toy_net").exists()
    assert not (tmp_path / "nets").exists()


@pytest.mark.parametrize("place", ["_copy", "write_atomically", "extract"])
def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path, monkeypatch, place):
    full = OSError(errno.ENOSPC, "No space left on device")

    def fails(*args, **options):
        raise full

    archive = place == "extract"
    (tmp_path / "toy.pt").write_bytes(zipped({"nets/a.pt": CONTENT}) if archive else CONTENT)
    weights = spec(**ARCHIVE) if archive else spec()
    with monkeypatch.context() as patch:
        patch.setattr(store, place, fails)
        with pytest.raises(RelocError, match="disk is full"):
            get(weights, tmp_path / "w", source=str(tmp_path / "toy.pt"))
    assert not list((tmp_path / "w").iterdir())
    get(weights, tmp_path / "w", source=str(tmp_path / "toy.pt"))


def test_verify_finds_changes(tmp_path):
    (tmp_path / "toy.pt").write_bytes(CONTENT)
    weights = spec()
    with pytest.raises(DataError, match="reloc weights get toy_net"):
        verify_weights(weights, tmp_path / "w")
    (found,) = get(weights, tmp_path / "w", source=str(tmp_path / "toy.pt"))
    assert verify_weights(weights, tmp_path / "w")[0].content == f"{len(CONTENT)} bytes"
    found.path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match="changed since"):
        verify_weights(weights, tmp_path / "w")
    found.path.unlink()
    with pytest.raises(DataError, match="missing"):
        verify_weights(weights, tmp_path / "w")
    (found.path.parent / "source.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        verify_weights(weights, tmp_path / "w")
    with pytest.raises(DataError, match="not the published file"):
        verify_file(spec(sha256=SHA[:8]), Path(__file__))


@pytest.mark.parametrize(
    "values",
    [{"name": "Toy"}, {"check": "toy"}, {"sha256": "xyz"}, {"urls": ()}, {"variants": ("a",)}],
)
def test_bad_descriptions_of_plugins(values):
    with pytest.raises(PluginError):
        spec(**values)


def test_every_installed_importer_can_be_loaded():
    pytest.importorskip("torch")
    known = list(default_registry().weights())
    for weights in known:
        assert callable(weights.load_check())
        assert weights.licence
    names = {w.name for w in known}
    plugins = {name for name, info in default_registry().plugins.items() if not info.problem}
    for plugin, wanted in {
        "scr_glace": {"ace_encoder", "ace_heads", "glace_head", "r2former", "xfeat"},
        "gnn_relpose": {
            "relpose_gnn",
            "relpose_gnn_6scenes",
            "relpose_gnn_cambridge",
            "resnet34",
            "netvlad_vgg16",
        },
        "nefes_refine": {"nefes_models", "dfnet", "vgg16"},
        "kfnet_temporal": {"kfnet_models"},
    }.items():
        if plugin in plugins:
            assert wanted <= names


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


def test_command_line(tmp_path, capsys, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("scr_glace")
    from scr_glace.networks.encoder import AceEncoder

    monkeypatch.chdir(tmp_path)
    torch.save(AceEncoder().state_dict(), "ace_encoder_pretrained.pt")
    assert main(["weights", "list"]) == 0
    out = capsys.readouterr().out
    assert "ace_encoder" in out
    assert "non-commercial" in out
    assert "not published" in out
    assert main(["weights", "list", "xfeat"]) == 0
    assert "0f5187fd" in capsys.readouterr().out
    assert main(["weights", "get", "ace_encoder", "from=."]) == 2
    assert "--accept-license" in capsys.readouterr().err
    assert main(["weights", "get", "ace_encoder", "--accept-license", "from=."]) == 0
    out = capsys.readouterr().out
    assert "5,568,000 parameters" in out
    assert "estimator.encoder.weights=weights/ace_encoder/ace_encoder_pretrained.pt" in out
    assert main(["weights", "verify"]) == 0
    out = capsys.readouterr().out
    assert "checksum as published" in out  # XFeat's, which comes with its package
    assert "5,568,000" in out
    path = Path("weights/ace_encoder/ace_encoder_pretrained.pt")
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["weights", "verify"]) == 2
    assert "changed since" in capsys.readouterr().err
    shutil.rmtree("weights")
    Path("evil.pt").write_bytes(pickle.dumps({"conv1.weight": Bomb()}))
    for arguments in (["get", "ace_encoder", "--accept-license", "from=evil.pt"],
                      ["verify", "ace_encoder", "file=evil.pt"]):  # fmt: skip
        assert main(["weights", *arguments]) == 2
        captured = capsys.readouterr()
        assert "evil.pt" in captured.err or "ace_encoder" in captured.err
        assert "executed" not in captured.out
    for arguments, match in (
        (["gett"], "Did you mean 'get'"),
        (["get"], "needs a NAME"),
        (["get", "ace_encodr"], "Did you mean 'ace_encoder'"),
        (["get", "ace_encoder", "form=x"], "Did you mean 'from'"),
        (["get", "glace_head", "--accept-license"], "from=FILE"),
    ):
        assert main(["weights", *arguments]) == 2
        assert match in capsys.readouterr().err
