"""The benchmark datasets by name."""

from __future__ import annotations

from collections.abc import Mapping

from reloc_core.datasets.benchmarks.aachen import Aachen
from reloc_core.datasets.benchmarks.base import Benchmark
from reloc_core.datasets.benchmarks.cambridge import Cambridge
from reloc_core.datasets.benchmarks.sevenscenes import SevenScenes
from reloc_core.datasets.benchmarks.twelvescenes import TwelveScenes
from reloc_core.datasets.benchmarks.wayspots import Wayspots

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (SevenScenes(), TwelveScenes(), Cambridge(), Aachen(), Wayspots())
}
