"""Children that end when the process that they work for has ended.

Otherwise a killed sweep leaves jobs that write on into folders which its successor writes, too, and a
plugin that never finishes its import outlives the command that examined it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

OWNER = "RELOC_OWNER"
"""Environment variable with host, process and start of whom the children work for."""
_POLL_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1


def own_children() -> None:
    """Make this process the one that all its children work for, however they are started."""
    os.environ[OWNER] = _identity(os.getpid())


def end_with_owner() -> None:
    """End this process when its owner does; nothing where it has none, or one on another machine."""
    owner = os.environ.get(OWNER, "")
    host, _, rest = owner.partition(" ")
    pid = rest.partition(" ")[0]
    if host != socket.gethostname() or not pid.isdigit() or int(pid) == os.getpid():
        return

    def watch() -> None:
        while _identity(int(pid)) == owner:
            time.sleep(_POLL_SECONDS)
        os._exit(128 + signal.SIGKILL)

    threading.Thread(target=watch, name="reloc-lifeline", daemon=True).start()


def end_with_parent() -> None:
    """Have the kernel end this process with its parent, even in code that lets no thread run.

    For children of a process's main thread alone, as the kernel means the thread. Linux only.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)


def _identity(pid: int) -> str:
    """Host, number and start of a process, so that a number used again is not mistaken; "" if it ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    try:
        # The command in parentheses may hold anything; the start is field 22, the state field 3.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        if fields[0] == "Z":
            return ""
        start = fields[19]
    except (OSError, IndexError):
        start = "?"
    return f"{socket.gethostname()} {pid} {start}"
