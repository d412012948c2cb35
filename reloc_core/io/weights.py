"""Getting and verifying files of pretrained weights.

ROOT/.downloads/NAME/FILE      what is being downloaded; resumed
ROOT/.NAME.partial/            the folder while it is made
ROOT/NAME/                     the file, or what was kept of the archive, and source.json
ROOT/NAME-VARIANT/             the same of a variant

A folder appears under its name only after every file in it was read by its importer.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

from reloc_core.errors import ConfigError, DataError, MapError
from reloc_core.io.archives import extract
from reloc_core.io.download import Advance, Policy, download, require_space
from reloc_core.io.files import read_text, write_atomically
from reloc_core.maps import explain_os_errors, partial_directory
from reloc_core.storage import sha256_of
from reloc_core.weights import PACKAGE, Weights

RECORD = "source.json"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Verified:
    """A file that its importer has read.

    Attributes:
        path: of the file.
        content: what it holds, in words.
        published: whether its SHA-256 was compared with a published one.
    """

    path: Path
    content: str
    published: bool


def folder_of(weights: Weights, root: Path, variant: str = "") -> Path:
    """Where the files of these weights lie."""
    return root / (f"{weights.name}-{variant}" if variant else weights.name)


def packaged(weights: Weights) -> Path | None:
    """The file in an installed package, None where the weights do not come with one."""
    for url in weights.urls:
        if url.startswith(PACKAGE):
            package, _, inside = url.removeprefix(PACKAGE).partition("/")
            try:
                return Path(str(files(package).joinpath(inside)))
            except ModuleNotFoundError:
                raise MapError(f"{weights.name} comes with '{package}': install it.") from None
    return None


def get_weights(
    weights: Weights,
    root: Path,
    variant: str = "",
    source: str = "",
    policy: Policy | None = None,
    advance: Advance = lambda done, size: None,
) -> list[Verified]:
    """Get weights and read them once with their importer.

    The caller has shown the licence and got the user's consent.

    Args:
        weights: which.
        root: folder of all weights; created.
        variant: where there are several.
        source: a local file, a folder that holds it, or another http address; "" takes the published
            addresses.
        policy: retries and timeouts.
        advance: progress.

    Returns:
        the verified files. Those that are there already are verified and not fetched again.

    Raises:
        ConfigError: no address is known, or the variant is wrong.
        DataError: the source has no such file, or its checksum is another one.
        MapError: the file is not what it should be, or holds code.
        RelocError: the connection or the disk fails; running it again resumes.
    """
    variant = weights.chosen(variant)
    own = packaged(weights)
    if own is not None:
        return [_verified(weights, own, own.name)]
    target = folder_of(weights, root, variant)
    if target.is_dir():
        return verify_weights(weights, root, variant)
    with explain_os_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    partial = partial_directory(target)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with explain_os_errors(partial):
            partial.mkdir()
            used = _fill(weights, root, variant, source, partial, policy, advance)
            found = [_verified(weights, path, weights.name) for path in _checked(weights, partial)]
            if not found:
                raise DataError(f"{used} holds none of {', '.join(weights.members)}.")
            write_atomically(partial / RECORD, _record(weights, variant, used, partial))
            os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [Verified(target / v.path.relative_to(partial), v.content, v.published) for v in found]


def verify_weights(weights: Weights, root: Path, variant: str = "") -> list[Verified]:
    """Compare checksums with the published one and those of the day they came; read every file.

    Raises:
        DataError: not there, a file is missing or changed.
        MapError: a file cannot be read by its importer.
    """
    variant = weights.chosen(variant)
    own = packaged(weights)
    if own is not None:
        return [_verified(weights, own, own.name)]
    folder = folder_of(weights, root, variant)
    if not folder.is_dir():
        more = f" variant={variant}" if variant else ""
        raise DataError(f"{folder} does not exist. Run 'reloc weights get {weights.name}{more}'.")
    for name, digest in _recorded(folder).items():
        if not (folder / name).is_file():
            raise DataError(f"{folder / name} is missing. Remove {folder} and get it again.")
        if sha256_of(folder / name) != digest:
            raise DataError(
                f"{folder / name} changed since it came. Remove {folder}, get it again."
            )
    return [_verified(weights, path, weights.name) for path in _checked(weights, folder)]


def verify_file(weights: Weights, path: Path) -> Verified:
    """Verify a file that lies elsewhere.

    Raises:
        DataError: it does not exist or has another checksum than the published one.
        MapError: its importer refuses it.
    """
    if not path.is_file() and not weights.members:
        raise DataError(f"There is no file {path}.")
    return _verified(weights, path, weights.name)


def _verified(weights: Weights, path: Path, name: str) -> Verified:
    published = bool(weights.sha256) and not weights.members
    if published:
        _compare(weights, path, name)
    return Verified(path, weights.load_check()(path), published)


def _compare(weights: Weights, path: Path, name: str) -> None:
    found = sha256_of(path)
    if not found.startswith(weights.sha256):
        raise DataError(
            f"{name}: {path} is not the published file: its SHA-256 is {found}, expected "
            f"{weights.sha256}{'...' if len(weights.sha256) < 64 else ''}."
        )


def _fill(
    weights: Weights, root: Path, variant: str, source: str, folder: Path,
    policy: Policy | None, advance: Advance,
) -> str:  # fmt: skip
    """Put the files into the folder; returns where they came from."""
    name = weights.file(variant)
    if source and not source.startswith(("http://", "https://")):
        path = Path(source).expanduser()
        if path.is_dir() and weights.members:
            _copy_members(weights, path, folder)
            return str(path)
        file = _file_in(path, name) if path.is_dir() else path
        if not file.is_file():
            raise DataError(f"There is no file {file}.")
        _unpack_or_copy(weights, file, folder, name)
        return str(file)
    urls = [source] if source else weights.addresses(variant)
    if not urls:
        raise ConfigError(
            f"'{weights.name}' has no address to download from: get {name} from {weights.where}, then "
            f"run this with from=FILE."
        )
    exact = weights.sha256 if len(weights.sha256) == 64 else None
    file = root / ".downloads" / folder_of(weights, root, variant).name / name
    download(urls, file, exact, policy, advance)
    if weights.sha256 and not exact:
        try:
            _compare(weights, file, weights.name)
        except DataError:
            file.unlink()
            raise
    _unpack_or_copy(weights, file, folder, name)
    shutil.rmtree(file.parent, ignore_errors=True)
    return urls[0]


def _file_in(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(name))
    if len(found) != 1:
        raise DataError(f"{folder} holds {len(found)} files called {name}; name the file itself.")
    return found[0]


def _unpack_or_copy(weights: Weights, file: Path, folder: Path, name: str) -> None:
    if weights.members:
        extract(file, folder, weights.keeps)
    else:
        _copy(file, folder / name)


def _copy_members(weights: Weights, source: Path, folder: Path) -> None:
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source).as_posix()
        if path.is_file() and weights.keeps(relative):
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(path, target)


def _copy(source: Path, target: Path) -> None:
    require_space(target.parent, source.stat().st_size, source.name)
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, _BLOCK)
        writer.flush()
        os.fsync(writer.fileno())


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != RECORD)


def _checked(weights: Weights, folder: Path) -> list[Path]:
    return [
        p for p in _files(folder) if fnmatchcase(p.relative_to(folder).as_posix(), weights.checked)
    ]


def _record(weights: Weights, variant: str, source: str, folder: Path) -> str:
    content = {
        "weights": weights.name,
        "variant": variant,
        "source": source,
        "licence": weights.licence,
        "sha256": {p.relative_to(folder).as_posix(): sha256_of(p) for p in _files(folder)},
    }
    return json.dumps(content, indent=1) + "\n"


def _recorded(folder: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(read_text(folder / RECORD))
        return {str(name): str(digest) for name, digest in content["sha256"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{folder / RECORD} is damaged. Remove {folder}, get it again.") from None
