"""Downloading large files: resumed, retried, checked.

A download grows in `FILE.part` and gets its name when it is complete. What was received stays there
when the connection breaks, and the next attempt asks for the rest (`Range`); `FILE.part.json` keeps the
server's validator (`ETag` or `Last-Modified`) so that a file that changed meanwhile is fetched anew
(`If-Range`) instead of glued together from two versions.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reloc_core.errors import DataError, RelocError
from reloc_core.io.files import write_atomically
from reloc_core.maps import explain_os_errors

Advance = Callable[[int, int | None], None]
"""Called with the bytes received so far and the size, None where the server does not tell."""

_BLOCK = 1 << 18
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_MARGIN = 64 << 20
"""Bytes of disk that stay free."""


@dataclass(frozen=True)
class Policy:
    """How patient a download is.

    Attributes:
        attempts: tries per URL that bring no new byte before it is given up.
        delay: seconds before the second try; doubles each time.
        timeout: seconds without an answer.
    """

    attempts: int = 5
    delay: float = 1.0
    timeout: float = 60.0


class _Incomplete(Exception):
    """The connection ended early; what came is kept."""


def download(
    urls: Sequence[str],
    target: Path,
    sha256: str | None = None,
    policy: Policy | None = None,
    advance: Advance = lambda done, size: None,
) -> Path:
    """Download a file from the first URL that has it.

    Args:
        urls: mirrors of the same file, http or https.
        target: file to make; returned at once if it exists and its checksum fits.
        sha256: hexadecimal; None where it is not known: then only the size is checked.
        policy: retries and timeouts.
        advance: progress.

    Raises:
        DataError: no URL has the file, or its checksum is wrong (the file is then removed).
        RelocError: the connection keeps breaking (run again to resume), or the disk is too small.
    """
    policy = policy or Policy()
    if target.is_file():
        _verify(target, sha256)
        return target
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    problems = []
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise DataError(f"{url} is no http address.")
        try:
            _fetch(url, part, policy, advance)
            break
        except urllib.error.HTTPError as error:
            problems.append(f"{url}: HTTP {error.code} {error.reason}")
        except (_Incomplete, urllib.error.URLError, OSError, http.client.HTTPException) as error:
            problems.append(f"{url}: {_reason(error)}")
    else:
        kept = f" {part.stat().st_size} bytes are kept;" if part.is_file() else ""
        raise RelocError(
            f"{target.name} could not be downloaded:\n  "
            + "\n  ".join(problems)
            + f"\n{kept} run the "
            "same command again to go on, or put the file there yourself (mirror=DIR)."
        )
    try:
        _verify(part, sha256)
    except DataError:
        _state(part).unlink(missing_ok=True)
        raise
    with explain_os_errors(target):
        os.replace(part, target)
        _state(part).unlink(missing_ok=True)
    return target


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse early what does not fit on the disk.

    Raises:
        RelocError: fewer than `needed` bytes, and a margin, are free.
    """
    free = shutil.disk_usage(folder).free
    if needed + _MARGIN > free:
        raise RelocError(
            f"{what} needs {needed / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB free. Free some "
            "space or choose another root=DIR."
        )


def _fetch(url: str, part: Path, policy: Policy, advance: Advance) -> None:
    """Append to `part` until it is complete; gives up after `attempts` tries without progress."""
    failures = 0
    state = _read_state(part)
    if state.get("url") == url and part.is_file() and state.get("size") == part.stat().st_size:
        return  # killed between the last byte and the renaming
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            _attempt(url, part, policy.timeout, advance)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing after what we have, or not the same file any more
                part.unlink(missing_ok=True)
                _state(part).unlink(missing_ok=True)
            elif error.code not in _RETRIED:
                raise
            problem: Exception = error
        except (
            _Incomplete,
            urllib.error.URLError,
            TimeoutError,
            http.client.HTTPException,
        ) as error:
            problem = error
        except ConnectionError as error:
            problem = error
        after = part.stat().st_size if part.is_file() else 0
        failures = 0 if after > before else failures + 1
        if failures >= policy.attempts:
            raise problem
        time.sleep(policy.delay * 2 ** max(failures - 1, 0))


def _attempt(url: str, part: Path, timeout: float, advance: Advance) -> None:
    have = part.stat().st_size if part.is_file() else 0
    state = _read_state(part)
    headers = {"User-Agent": "reloc", "Accept-Encoding": "identity"}
    validator = state.get("validator") if state.get("url") == url else None
    if have and validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": str(validator)}
    else:
        have = 0
    with urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=timeout
    ) as reply:
        if reply.status == 206:
            start, size = _content_range(reply.headers.get("Content-Range", ""))
            if start != have:
                raise _Incomplete(f"the server sent bytes from {start} instead of {have}")
        else:
            have = 0
            size = _integer(reply.headers.get("Content-Length"))
        etag = reply.headers.get("ETag") or ""
        # A weak ETag does not promise equal bytes.
        new = etag if etag and not etag.startswith("W/") else reply.headers.get("Last-Modified")
        if size is not None:
            require_space(part.parent, size - have, part.name.removesuffix(".part"))
        with explain_os_errors(part):
            write_atomically(_state(part), json.dumps({"url": url, "validator": new, "size": size}))
            _receive(reply, part, have, size, advance)


def _receive(reply: Any, part: Path, have: int, size: int | None, advance: Advance) -> None:
    with part.open("ab" if have else "wb") as file:
        done = have
        while True:
            try:
                block = reply.read(_BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise _Incomplete(_reason(error)) from error
            if not block:
                break
            file.write(block)
            done += len(block)
            advance(done, size)
        file.flush()
        os.fsync(file.fileno())
    if size is not None and done != size:
        raise _Incomplete(f"{done} of {size} bytes came")


def _content_range(value: str) -> tuple[int, int | None]:
    """First byte and total size of `bytes FIRST-LAST/SIZE`."""
    with contextlib.suppress(ValueError):
        unit, _, rest = value.partition(" ")
        span, _, size = rest.partition("/")
        if unit == "bytes":
            return int(span.partition("-")[0]), _integer(size)
    raise _Incomplete(f"the server sent an odd range '{value}'")


def _integer(value: str | None) -> int | None:
    return int(value) if value and value.isdigit() else None


def _state(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_state(part: Path) -> dict[str, Any]:
    try:
        content = json.loads(_state(part).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _verify(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        path.unlink()
        raise DataError(
            f"{path.name.removesuffix('.part')} is not the published file: its SHA-256 is "
            f"{digest.hexdigest()}, expected {sha256}. It was removed; run the command again."
        )


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None) or error
    return str(inner) or type(inner).__name__
