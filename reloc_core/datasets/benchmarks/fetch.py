"""From an archive on the internet to a dataset on the disk.

ROOT/.downloads/DATASET/...    archives, kept so that nothing is fetched twice
ROOT/.SCENE.work/              unpacked archive, removed when the scene is done
ROOT/.SCENE.partial/           the scene while it is made
ROOT/SCENE/                    the scene, complete: train/, test/, source.json
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from reloc_core.datasets.ace import AceDataset
from reloc_core.datasets.benchmarks.base import Benchmark, FetchOptions, Note, Source
from reloc_core.datasets.config import AceConfig
from reloc_core.errors import ConfigError, DataError
from reloc_core.io.download import Policy, download
from reloc_core.io.files import write_atomically
from reloc_core.maps import explain_os_errors, partial_directory

DOWNLOADS = ".downloads"
Received = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes received so far and its size or None."""


def fetch(
    benchmark: Benchmark,
    scene: str,
    root: Path,
    options: FetchOptions,
    mirror: str = "",
    policy: Policy | None = None,
    note: Note = lambda text: None,
    received: Received = lambda name, done, size: None,
) -> Path:
    """Download a scene and make its ACE layout.

    The caller has shown the licence and got the user's consent.

    Args:
        benchmark: the dataset.
        scene: one of its scenes.
        root: folder of datasets; created.
        options: see `FetchOptions`.
        mirror: base address or folder that has the files as `Source.path`; "" takes the published
            addresses.
        policy: retries and timeouts.
        note: tells the user something.
        received: progress of downloads.

    Returns:
        the scene's folder. One that is there already is left as it is.

    Raises:
        ConfigError: an option that the dataset does not have.
        DataError: a file is missing, damaged, hostile, or has not the published number of frames.
        RelocError: the connection or the disk fails; running it again resumes.
    """
    check_options(benchmark, options)
    target = root / benchmark.folder(scene, options)
    if target.is_dir():
        note(f"{target} exists already.")
        return target
    with explain_os_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    files = root / DOWNLOADS
    for source in benchmark.sources(scene, options):
        _get(source, files / source.path, mirror, policy, received)
    work, partial = target.with_name(f".{target.name}.work"), partial_directory(target)
    for folder in (work, partial):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        with explain_os_errors(target):
            work.mkdir()
            partial.mkdir()
            benchmark.build(scene, options, files, work, partial, note)
            counts = _check(benchmark, scene, options, partial, note)
            write_atomically(
                partial / "source.json", _source_text(benchmark, scene, options, counts)
            )
            os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def check_options(benchmark: Benchmark, options: FetchOptions) -> None:
    """Refuse options that the dataset does not have.

    Raises:
        ConfigError: names the option and what there is.
    """
    for name, default in (("poses", "dslam"), ("depth", "none"), ("focal", "published")):
        value = getattr(options, name)
        known = benchmark.choices.get(name, (default,))
        if value not in known:
            raise ConfigError(f"{benchmark.name} has no {name}={value}; known: {', '.join(known)}.")
    if options.focal == "pgt" and options.poses != "sfm":
        raise ConfigError("focal=pgt belongs to poses=sfm.")
    if options.depth == "registered" and options.poses == "original":
        raise ConfigError(
            "depth=registered is of the colour camera, poses=original are of the depth camera. "
            "Take poses=dslam or poses=sfm."
        )


def _get(
    source: Source, target: Path, mirror: str, policy: Policy | None, received: Received
) -> None:
    if mirror and not mirror.startswith(("http://", "https://")):
        local = Path(mirror).expanduser() / source.path
        if not local.is_file():
            raise DataError(f"The mirror has no file {local}.")
        with explain_os_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(local.resolve())
        return
    urls: Sequence[str] = [f"{mirror.rstrip('/')}/{source.path}"] if mirror else source.urls
    name = target.name
    download(urls, target, source.sha256, policy, lambda done, size: received(name, done, size))


def _check(
    benchmark: Benchmark, scene: str, options: FetchOptions, folder: Path, note: Note
) -> dict[str, int]:
    """Read the new dataset as a user would, and compare its size with the published one."""
    counts = {}
    for split in ("train", "test"):
        dataset = AceDataset(AceConfig(str(folder), split))
        counts[split] = len(dataset)
    expected = benchmark.expected(scene, options)
    wrong = [
        f"{counts[split]} instead of {count} {split} frames"
        for split, count in expected.items()
        if counts[split] != count
    ]
    if wrong and not options.partial:
        raise DataError(
            f"{benchmark.title}, {scene}: {' and '.join(wrong)}. The archive is not the published one; "
            "partial=true accepts it all the same."
        )
    if wrong:
        note(f"{scene}: {' and '.join(wrong)}")
    return counts


def _source_text(
    benchmark: Benchmark, scene: str, options: FetchOptions, counts: dict[str, int]
) -> str:
    content = {
        "dataset": benchmark.title,
        "scene": scene,
        "licence": benchmark.licence,
        "licence_url": benchmark.licence_url,
        "poses": options.poses,
        "depth": options.depth,
        "focal": options.focal,
        "frames": counts,
        "sources": [source.urls[0] for source in benchmark.sources(scene, options)],
    }
    return json.dumps(content, indent=2) + "\n"
