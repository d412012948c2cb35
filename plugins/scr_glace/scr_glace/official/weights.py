"""Published weights that the estimators can use, and their importers. Imports PyTorch only in checks."""

from __future__ import annotations

from pathlib import Path

from reloc_core.weights import Weights

_NIANTIC = "non-commercial, with a reservation of patents (Niantic, licence of nianticlabs/ace)"

ENCODER = Weights(
    name="ace_encoder",
    summary="encoder of DSAC*, ACE and GLACE: local features for the presets scr_glace/ace and paper",
    filename="ace_encoder_pretrained.pt",
    licence=_NIANTIC,
    check="scr_glace.official.weights:check_encoder",
    urls=("https://github.com/nianticlabs/ace/raw/main/ace_encoder_pretrained.pt",),
    where="the repository nianticlabs/ace",
    option="estimator.encoder.weights=FILE",
)
ACE_HEADS = Weights(
    name="ace_heads",
    summary="heads of ACE for its published scenes, importable as maps",
    filename="ace_models.tar.gz",
    licence=_NIANTIC,
    check="scr_glace.official.weights:check_head",
    urls=("https://storage.googleapis.com/niantic-lon-static/research/ace/ace_models.tar.gz",),
    where="the repository nianticlabs/ace",
    members=("*.pt",),
)
GLACE_HEAD = Weights(
    name="glace_head",
    summary="head of GLACE, importable as a map",
    filename="glace_head.pt",
    licence=_NIANTIC,
    check="scr_glace.official.weights:check_head",
    where="the link in the README of the repository cvg/glace (no stable address)",
)
R2FORMER = Weights(
    name="r2former",
    summary="global descriptor of GLACE (retrieval part of R2Former)",
    filename="CVPR23_DeitS_Rerank.pth",
    licence="Apache-2.0",
    check="scr_glace.official.weights:check_r2former",
    where="the link in the README of the repository R2Former (no stable address)",
    option="estimator.global_descriptor.weights=FILE",
)


def check_encoder(path: Path) -> str:
    """Read an ACE encoder; see `reloc_core.weights.Check`."""
    from reloc_core.features.weights import check_layout, read_state_dict
    from scr_glace.networks.encoder import AceEncoder

    state = read_state_dict(path, "ACE encoder")
    check_layout(AceEncoder(), state, "ACE encoder")
    return f"ACE encoder, {sum(v.numel() for v in state.values()):,} parameters"


def check_head(path: Path) -> str:
    """Read a head of ACE, ACE0 or GLACE; see `reloc_core.weights.Check`."""
    from reloc_core.features.weights import read_state_dict
    from scr_glace.official.checkpoints import head_from_official

    spec = head_from_official(read_state_dict(path, "ACE or GLACE head")).spec
    return (
        f"head {spec.in_channels} -> {spec.channels}, {spec.blocks} extra block(s), "
        f"{spec.clusters} cluster(s)"
    )


def check_r2former(path: Path) -> str:
    """Read R2Former's retrieval part; see `reloc_core.weights.Check`."""
    from scr_glace.networks.r2former import R2Former

    network = R2Former.pretrained(path)
    return f"R2Former, descriptors of {network.dimension} numbers"
