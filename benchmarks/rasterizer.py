"""Speed of the Gaussian rasterizer: against PyTorch, against the machine, and how it grows.

    python benchmarks/rasterizer.py [--json benchmarks/results/rasterizer.json] [--threads 1] [--repeat 7]

The scene: Gaussians of about 2 cm, 1 to 4 m away, filling the view of a 58-degree camera. All times are
CPU time (summed over threads), the least of the repeats; everything is measured in one run, so ratios hold
on a busy machine too.

The floor of a pass is what its arithmetic and its memory traffic alone would take: forward one multiply-add
per (Gaussian, pixel) pair and channel (depth is one more), backward two; plus the bytes of the channels and
the image, read or written once. Peaks are those of this machine in the same run: a float32 matrix product
and a large copy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from reloc_core import _native
from reloc_core.rendering import Gaussians, View, accumulate_features, evaluate_sh, rasterize
from reloc_core.rendering.reference import Projected, blend, project

DEFAULT = {"count": 100_000, "width": 320, "height": 240, "channels": 67}


def make_scene(count: int, channels: int) -> tuple[Gaussians, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    z = 1 + 3 * torch.rand(count, generator=g)
    xy = (torch.rand(count, 2, generator=g) - 0.5) * torch.tensor([1.25, 0.95]) * z[:, None]
    scales = 0.02 * torch.exp(0.5 * torch.randn(count, 3, generator=g))
    gaussians = Gaussians(
        torch.cat([xy, z[:, None]], 1),
        torch.randn(count, 4, generator=g),
        scales,
        torch.sigmoid(1.5 * torch.randn(count, generator=g)),
    )
    return gaussians, torch.rand(count, channels, generator=g)


def make_view(width: int, height: int) -> View:
    focal = 262.5 * width / 320
    pose = torch.eye(4, dtype=torch.float64)
    return View(pose, focal, focal, (width - 1) / 2, (height - 1) / 2, width, height)


def cpu_seconds(work: Callable[[], object], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def trainable(scene: tuple[Gaussians, torch.Tensor]) -> list[torch.Tensor]:
    return [t.requires_grad_(True) for t in (*vars(scene[0]).values(), scene[1])]


def measure(case: dict[str, int], threads: int, repeat: int) -> dict[str, float]:
    """CPU time of each pass of the native rasterizer."""
    scene = make_scene(case["count"], case["channels"])
    view = make_view(case["width"], case["height"])
    leaves = trainable(scene)
    size = (view.height, view.width)
    seed = torch.randn(*size, case["channels"])
    ones = torch.ones(size)
    forward, backward, wall = [], [], []
    for _ in range(repeat + 1):
        start, start_wall = time.process_time(), time.perf_counter()
        out = rasterize(*scene, view, threads=threads)
        middle = time.process_time()
        torch.autograd.backward([out.image, out.alpha, out.depth], [seed, ones, ones])
        end = time.process_time()
        wall.append(time.perf_counter() - start_wall)
        forward.append(middle - start)
        backward.append(end - middle)
        for leaf in leaves:
            leaf.grad = None
    with torch.no_grad():
        gather = cpu_seconds(
            lambda: accumulate_features(scene[0], seed, view, threads=threads), repeat
        )
        inference = cpu_seconds(lambda: rasterize(*scene, view, threads=threads), repeat)
    assert out.pairs is not None
    return {
        **case,
        "pairs": out.pairs,
        "forward_ms": 1e3 * min(forward[1:]),
        "backward_ms": 1e3 * min(backward[1:]),
        "both_wall_ms": 1e3 * min(wall[1:]),
        "render_only_ms": 1e3 * inference,
        "accumulate_ms": 1e3 * gather,
        "pairs_per_second": out.pairs / (min(forward[1:]) + min(backward[1:])),
    }


def peaks(repeat: int) -> dict[str, float]:
    """Multiply-adds and bytes per second of one thread."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    product = cpu_seconds(lambda: a @ b, 3 * repeat)
    source, target = torch.ones(1 << 26), torch.empty(1 << 26)
    target.copy_(source)
    copy = cpu_seconds(lambda: target.copy_(source), repeat)
    return {"fma_per_second": 1024**3 / product, "bytes_per_second": 2 * source.numel() * 4 / copy}


def floors(result: dict[str, float], peak: dict[str, float]) -> dict[str, float]:
    """The least time of both passes in milliseconds."""
    fma = result["pairs"] * (result["channels"] + 1) / peak["fma_per_second"]
    gaussians = 4 * result["count"] * (11 + result["channels"])
    image = 4 * result["width"] * result["height"] * (result["channels"] + 2)
    forward = fma + (gaussians + image) / peak["bytes_per_second"]
    backward = 2 * fma + (2 * gaussians + image) / peak["bytes_per_second"]
    return {"forward_floor_ms": 1e3 * forward, "backward_floor_ms": 1e3 * backward}


def blend_and_back(
    projected: Projected, channels: torch.Tensor, pixels: torch.Tensor, seed: torch.Tensor
) -> None:
    image, alpha, depth, _, _ = blend(projected, channels, pixels, None)
    loss = (image * seed).sum() + alpha.sum() + depth.sum()
    loss.backward(retain_graph=True)


def dense_reference(case: dict[str, int], pixels: int) -> float:
    """CPU milliseconds of the plain reference for the whole image, from evenly spread pixels."""
    scene = make_scene(case["count"], case["channels"])
    view = make_view(case["width"], case["height"])
    trainable(scene)
    total = case["width"] * case["height"]
    chosen = torch.linspace(0, total - 1, pixels).long()
    grid = torch.stack([chosen % view.width, chosen // view.width], 1).float()
    seed = torch.randn(16, case["channels"])
    projected = project(scene[0], view)
    start = time.process_time()
    for some in grid.split(16):
        blend_and_back(projected, scene[1], some, seed[: len(some)])
    return 1e3 * (time.process_time() - start) * total / pixels


def tiled_reference(case: dict[str, int], every: int) -> float:
    """As dense_reference, but each 16x16 tile blends only the Gaussians that can reach it."""
    scene = make_scene(case["count"], case["channels"])
    view = make_view(case["width"], case["height"])
    trainable(scene)
    projected = project(scene[0], view)
    with torch.no_grad():
        reach = (2 * torch.log((255 * projected.opacities).clamp_min(1))).sqrt()
        half = reach[:, None] * projected.covariances[:, [0, 2]].sqrt()
        low, high = projected.means - half, projected.means + half
    tiles = [(x, y) for y in range(0, view.height, 16) for x in range(0, view.width, 16)][::every]
    offsets = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="xy"), -1)
    seed = torch.randn(256, case["channels"])
    start = time.process_time()
    for x, y in tiles:
        first = torch.tensor([x, y])
        inside = ((high >= first) & (low <= first + 15)).all(1).nonzero()[:, 0]
        part = Projected(*(t[inside] for t in vars(projected).values()))
        blend_and_back(part, scene[1], (offsets + first).reshape(-1, 2), seed)
    return 1e3 * (time.process_time() - start) * every


def spherical_harmonics(count: int, repeat: int) -> dict[str, float]:
    c = torch.randn(count, 16, 3, requires_grad=True)
    d = torch.randn(count, 3, requires_grad=True)
    seed = torch.ones(count, 3)
    forward = cpu_seconds(lambda: evaluate_sh(c, d), repeat)
    both = cpu_seconds(lambda: evaluate_sh(c, d).backward(seed), repeat)
    return {"forward_ms": 1e3 * forward, "backward_ms": 1e3 * (both - forward)}


def sweep(threads: int, repeat: int) -> list[dict[str, float]]:
    cases = [DEFAULT]
    cases += [{**DEFAULT, "count": n} for n in (12_500, 25_000, 50_000, 200_000)]
    cases += [{**DEFAULT, "width": w, "height": w * 3 // 4} for w in (80, 160, 640)]
    cases += [{**DEFAULT, "channels": c} for c in (0, 3, 16, 32, 64, 131)]
    return [measure(case, threads, repeat) for case in cases]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--reference-pixels", type=int, default=256)
    parser.add_argument("--reference-every", type=int, default=25, help="tiles skipped per tile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    peak = peaks(options.repeat)
    results = sweep(options.threads, options.repeat)
    for result in results:
        result.update(floors(result, peak))
    first = results[0]
    both = first["forward_ms"] + first["backward_ms"]
    reference = {
        "dense_ms": dense_reference(DEFAULT, options.reference_pixels),
        "tiled_ms": tiled_reference(DEFAULT, options.reference_every),
    }
    print(f"peak {peak['fma_per_second'] / 1e9:.0f} G multiply-adds/s, "
          f"{peak['bytes_per_second'] / 1e9:.1f} GB/s, kernels {_native.kernel_name()}")  # fmt: skip
    print(
        "Gaussians  image    C  pairs/M  forward (x floor)  backward (x floor)  accumulate  Mpairs/s"
    )
    for r in results:
        print(
            f"{r['count']:9d}  {r['width']}x{r['height']:<4d} {r['channels']:3d} {r['pairs'] / 1e6:8.2f}"
            f"  {r['forward_ms']:7.1f} ms ({r['forward_ms'] / r['forward_floor_ms']:4.1f})"
            f"  {r['backward_ms']:8.1f} ms ({r['backward_ms'] / r['backward_floor_ms']:4.1f})"
            f"  {r['accumulate_ms']:7.1f} ms  {r['pairs_per_second'] / 1e6:8.1f}"
        )
    for name, milliseconds in reference.items():
        print(
            f"PyTorch {name[:-3]}: {milliseconds / 1e3:.1f} s, {milliseconds / both:.0f} times as long"
        )
    harmonics = spherical_harmonics(DEFAULT["count"], options.repeat)
    print("spherical harmonics, degree 3:", {k: round(v, 1) for k, v in harmonics.items()})
    if options.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        record = {
            "machine": machine,
            "kernels": _native.kernel_name(),
            "torch": torch.__version__,
            "threads": options.threads,
            "peak": peak,
            "results": results,
            "reference": reference,
            "spherical_harmonics": harmonics,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
