"""A lock on a file that says who holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from reloc_core.storage import explain_os_errors

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class Held(Exception):
    """Somebody else has the lock.

    Attributes:
        holder: such as "process 4711 on this machine (since 12:03:10)".
    """

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


class FileLock:
    """An advisory lock (`flock`), held until `release`, garbage collection or the process's end.

    The kernel gives the lock back when the process ends, however it ends, so a kill leaves nothing to
    clean up but the file. Forked children do not keep it. A thread that asks again for what it holds gets
    it: it has left what it did before. Where the file system has no locks, the process number in the file
    decides.

    Args:
        path: the lock file; created, and removed on release.
        shared: others that share it may have it too; nobody alone.

    Raises:
        Held: somebody else has it.
        RelocError: the file cannot be written.
    """

    def __init__(self, path: Path, shared: bool = False) -> None:
        self.path = Path(os.path.abspath(path))
        self._thread = threading.get_ident()
        for former in [f for f in _held if f.path == self.path and f._thread == self._thread]:
            former.release()
        with explain_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                try:
                    _take(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
                    if _is_at(descriptor, path):
                        break
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)  # its holder removed it meanwhile
            me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(me).encode(), 0)
        self._descriptor = descriptor
        self._closed = weakref.finalize(self, _release, descriptor, path, os.getpid(), shared)
        _held.add(self)

    def release(self) -> None:
        """Give it back; more than once does no harm."""
        self._closed()


def _take(descriptor: int, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Held(_describe(_content(descriptor))) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        holder = _content(descriptor)
        if holder.get("host") == socket.gethostname() and _lives(holder.get("pid")):
            raise Held(_describe(holder)) from None


def _lives(pid: Any) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _content(descriptor: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _describe(holder: dict[str, Any]) -> str:
    """Who has it, as far as its file tells; it may just be about to be written."""
    pid, host = holder.get("pid"), holder.get("host")
    if not isinstance(pid, int):
        return "another process"
    if host != socket.gethostname():
        who = f"process {pid} on {host}"
    else:
        who = "this very process" if pid == os.getpid() else f"process {pid} on this machine"
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError, KeyError):
        who += time.strftime(" (since %H:%M:%S)", time.localtime(holder["since"]))
    return who


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _release(descriptor: int, path: Path, owner: int, shared: bool) -> None:
    if os.getpid() != owner:
        return
    with contextlib.suppress(OSError):
        # The last of those that share it removes the file.
        if shared:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, path):
            path.unlink()
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _drop_in_child() -> None:
    """A forked child shares the open file and would keep the lock beyond its parent's end."""
    for lock in list(_held):
        if lock._closed.alive:
            with contextlib.suppress(OSError):
                os.close(lock._descriptor)
            lock._closed.detach()


os.register_at_fork(after_in_child=_drop_in_child)
