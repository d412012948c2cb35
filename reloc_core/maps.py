"""Map directories: what `fit` writes and `load` reads.

    MAP/
      map.yaml            format version, component, plugin version, config, dataset fingerprint, unit,
                          and size and SHA-256 of every tensor file
      *.safetensors       tensors; loading runs no code

A map is written to `.MAP.partial/` beside its final place and renamed when complete, so a map that
exists is whole. The same directory holds the training checkpoint, which is how an interrupted run
resumes. While somebody writes, `.MAP.lock` says who.
"""

from reloc_core.map_checks import check_tensors, loading
from reloc_core.map_reader import FORMAT_VERSION, MAP_FILE, Map, MapInfo, partial_directory
from reloc_core.map_writer import REFINER_PART, MapWriter, dataset_identity
from reloc_core.storage import explain_os_errors, load_tensors, save_tensors

__all__ = [
    "FORMAT_VERSION",
    "MAP_FILE",
    "REFINER_PART",
    "Map",
    "MapInfo",
    "MapWriter",
    "check_tensors",
    "dataset_identity",
    "explain_os_errors",
    "load_tensors",
    "loading",
    "partial_directory",
    "save_tensors",
]
