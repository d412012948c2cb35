"""`reloc cache`: what `reloc benchmark` keeps so that it need not be fitted again."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.table import Table

from reloc_core.errors import ConfigError, did_you_mean
from reloc_core.map_cache import Entry, MapCache
from reloc_core.runs import console

USAGE = """\
reloc cache - maps that 'reloc benchmark' keeps so that a sweep fits each configuration once

Usage: reloc cache list [root=DIR]
       reloc cache clear [KEY ...] [root=DIR]

list     what is kept, from which data, how long it took to fit, the last used first
clear    remove entries, all where no KEY is given; one that is in use stays

Kept in $RELOC_CACHE/maps or ~/.cache/reloc/maps, at most 5 GB: what was used longest ago goes first.
An entry is used only for the same options, images, poses, seed, device and code.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(USAGE, end="")
        return 0
    verb, *rest = arguments
    if verb not in ("list", "clear"):
        raise ConfigError(
            f"There is no 'reloc cache {verb}'.{did_you_mean(verb, ('list', 'clear'))}"
        )
    roots = [a.partition("=")[2] for a in rest if a.startswith("root=")]
    keys = [a for a in rest if not a.startswith("root=")]
    cache = MapCache(roots[-1] if roots else None)
    entries = cache.entries()
    known = {e.key: e for e in entries}
    if verb == "list":
        if keys:
            raise ConfigError(f"'reloc cache list' takes no '{keys[0]}'; see reloc cache --help.")
        _list(cache, entries)
        return 0
    for key in keys:
        if key not in known:
            raise ConfigError(f"There is no '{key}' in {cache.root}.{did_you_mean(key, known)}")
    for key in keys or known:
        cache.remove(key)
    left = {e.key for e in cache.entries()}
    gone = [known[key] for key in keys or known if key not in left]
    freed = sum(e.bytes for e in gone) / 1e6
    console.print(f"Removed {len(gone)} of {len(entries)} entries, {freed:.1f} MB.", markup=False)
    return 0


def _list(cache: MapCache, entries: Sequence[Entry]) -> None:
    if not entries:
        console.print(f"Nothing is kept in {cache.root}.", markup=False)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("key", "component", "data", "seed", "fitted in", "MB", "last used"):
        table.add_column(
            title,
            justify="right" if title in ("seed", "fitted in", "MB") else "left",
            no_wrap=title == "key",
            min_width=16 if title == "key" else None,
            overflow="fold",
        )
    for entry in entries:
        data = entry.identity.get("data") or [{}]
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        table.add_row(
            entry.key, str(entry.identity.get("component")), str(data[0].get("name")),
            str(entry.identity.get("seed")), f"{entry.seconds:.0f} s", f"{entry.bytes / 1e6:.1f}", used,
        )  # fmt: skip
    console.print(table)
    console.print(f"{cache.root}: {sum(e.bytes for e in entries) / 1e6:.1f} MB", markup=False)
