"""Published weights of KFNet, and their importer. Imports PyTorch only in the check."""

from __future__ import annotations

from pathlib import Path

from reloc_core.weights import Weights

KFNET = Weights(
    name="kfnet_models",
    summary="SCoordNet, OFlowNet and KFNet of the seven scenes of 7-Scenes (TensorFlow)",
    filename="kfnet_models.zip",
    licence="MIT",
    check="kfnet_temporal.published.weights:check_bundle",
    where="the link in the README of the repository zlthinker/KFNet (3 GB, no stable address)",
    members=("*.index", "*.data-*-of-*"),
    checked="*.index",
)


def check_bundle(path: Path) -> str:
    """Read the networks of a TensorFlow checkpoint; see `reloc_core.weights.Check`."""
    from kfnet_temporal.published.tf_checkpoint import TensorBundle
    from kfnet_temporal.published.tf_import import SCOPES, import_oflownet, import_scoordnet
    from reloc_core.errors import MapError

    bundle = TensorBundle(path)
    importers = {"scoordnet": import_scoordnet, "oflownet": import_oflownet}
    found = []
    for name, scope in SCOPES.items():
        if f"{scope}/prediction/kernel" in bundle:
            importers[name](path)
            found.append(name)
    if not found:
        raise MapError(
            f"{path} is no checkpoint of KFNet: it has neither of {', '.join(SCOPES.values())}."
        )
    return f"KFNet checkpoint: {' and '.join(found)}"
