"""Benchmark datasets: where they come from and how they become the ACE layout."""

from reloc_core.datasets.benchmarks.base import Benchmark, FetchOptions, Source
from reloc_core.datasets.benchmarks.catalog import BENCHMARKS
from reloc_core.datasets.benchmarks.fetch import fetch

__all__ = ["BENCHMARKS", "Benchmark", "FetchOptions", "Source", "fetch"]
