"""Published TensorFlow weights of KFNet as PyTorch networks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kfnet_temporal.published.oflownet import OFlowNet
from kfnet_temporal.published.scoordnet import SCoordNet
from kfnet_temporal.published.tf_checkpoint import TensorBundle
from reloc_core.errors import MapError

SCOPES = {"scoordnet": "ScoreNet", "oflownet": "Temporal"}
"""Variable scopes; the first kept the network's old name."""


def state_of(bundle: TensorBundle, scope: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters from the variables SCOPE/LAYER/{kernel,bias}.

    Raises:
        MapError: a variable is missing or has another shape.
    """
    state: dict[str, Tensor] = {}
    for layer in {key.rpartition(".")[0] for key in module.state_dict()}:
        kernel = torch.from_numpy(bundle.tensor(f"{scope}/{layer}/kernel"))
        # Convolutions are stored H, W, in, out and transposed ones H, W, out, in: for PyTorch's
        # out, in, H, W and in, out, H, W that is the same permutation.
        weight = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        bias = torch.from_numpy(bundle.tensor(f"{scope}/{layer}/bias"))
        for key, value in ((f"{layer}.weight", weight), (f"{layer}.bias", bias)):
            expected = tuple(module.state_dict()[key].shape)
            if tuple(value.shape) != expected:
                raise MapError(
                    f"{bundle.prefix}: {scope}/{layer} has shape {tuple(value.shape)}, expected "
                    f"{expected}. This is another network."
                )
            state[key] = value.contiguous().float()
    return state


def import_scoordnet(prefix: Path | str) -> SCoordNet:
    """SCoordNet with the weights of a checkpoint of the SCoordNet or KFNet branch."""
    network = SCoordNet()
    network.load_state_dict(state_of(TensorBundle(prefix), SCOPES["scoordnet"], network))
    return network.eval()


def import_oflownet(prefix: Path | str) -> OFlowNet:
    """OFlowNet with the weights of a checkpoint of the OFlowNet or KFNet branch."""
    network = OFlowNet()
    network.load_state_dict(state_of(TensorBundle(prefix), SCOPES["oflownet"], network))
    return network.eval()
