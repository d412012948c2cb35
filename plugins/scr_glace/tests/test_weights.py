"""Importers behind `reloc weights`: files with the official names and shapes, written here."""

import pickle

import pytest
import torch
from scr_glace.official.weights import check_encoder, check_head, check_r2former

from reloc_core.errors import MapError


def empty(*shape, dtype=torch.float32):
    """A tensor of any size that takes no room in the file."""
    return torch.zeros(1, dtype=dtype).expand(*shape) if shape else torch.zeros((), dtype=dtype)


def layers(shapes, dtype=torch.float32):
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = empty(*shape, dtype=dtype)
        state[f"{name}.bias"] = empty(shape[0], dtype=dtype)
    return state


ENCODER = {
    "conv1": (32, 1, 3, 3), "conv2": (64, 32, 3, 3), "conv3": (128, 64, 3, 3), "conv4": (256, 128, 3, 3),
    "res1_conv1": (256, 256, 3, 3), "res1_conv2": (256, 256, 1, 1), "res1_conv3": (256, 256, 3, 3),
    "res2_conv1": (512, 256, 3, 3), "res2_conv2": (512, 512, 1, 1), "res2_conv3": (512, 512, 3, 3),
    "res2_skip": (512, 256, 1, 1),
}  # fmt: skip


def ace_head():
    names = ("res3_conv1", "res3_conv2", "res3_conv3", "0c0", "0c1", "0c2", "fc1", "fc2")
    state = layers(dict.fromkeys(names, (512, 512, 1, 1)), torch.float16)
    state |= layers({"fc3": (4, 512, 1, 1)}, torch.float16)
    state |= scales()
    return {**state, "mean": empty(1, 3, 1, 1, dtype=torch.float16)}


def glace_head(clusters=50, width=768, hidden=1536):
    narrow, out = (hidden, width, 1, 1), (width, hidden, 1, 1)
    shapes = {"res3_conv1": (width, width, 1, 1), "res3_conv2": narrow, "res3_conv3": out}
    for block in range(3):
        shapes |= {f"{block}c0": (width, width, 1, 1), f"{block}c1": narrow, f"{block}c2": out}
    shapes |= {"fc1": (width, width, 1, 1), "fc2": narrow, "fcc": (clusters, hidden, 1, 1),
               "fc3": (4, hidden, 1, 1)}  # fmt: skip
    centers = empty(1, clusters, 3, 1, 1, dtype=torch.float16)
    return {**layers(shapes, torch.float16), **scales(), "centers": centers}


def scales():
    values = {
        "max_scale": 4.0,
        "min_scale": 0.01,
        "max_inv_scale": 0.25,
        "h_beta": 0.9242,
        "min_inv_scale": 100.0,
    }
    return {name: torch.tensor([value]).half() for name, value in values.items()}


def r2former():
    shapes = {"norm": (384,)}
    for i in range(12):
        shapes |= {f"blocks.{i}.{n}": s for n, s in {
            "norm1": (384,), "norm2": (384,), "attn.qkv": (1152, 384), "attn.proj": (384, 384),
            "mlp.fc1": (1536, 384), "mlp.fc2": (384, 1536)}.items()}  # fmt: skip
    shapes |= {"patch_embed.proj": (384, 3, 16, 16), "head": (256, 384), "head_dist": (256, 384)}
    state = layers(shapes)
    state |= {
        "cls_token": empty(1, 1, 384),
        "dist_token": empty(1, 1, 384),
        "pos_embed": empty(1, 1202, 384),
    }
    content = {f"module.backbone.{k}": v for k, v in state.items()}
    return {"model_state_dict": {**content, "module.Reranker.proj.weight": empty(2, 2)}}


@pytest.mark.parametrize(
    ("check", "content", "says"),
    [
        (check_encoder, layers(ENCODER), "5,568,000 parameters"),
        (check_head, ace_head(), "head 512 -> 512, 1 extra block"),
        (check_head, glace_head(), "head 768 -> 768, 3 extra block(s), 50 cluster(s)"),
        (check_r2former, r2former(), "256 numbers"),
    ],
)
def test_official_layouts(tmp_path, check, content, says):
    torch.save(content, tmp_path / "official.pt")
    assert (tmp_path / "official.pt").stat().st_size < 1e6
    assert says in check(tmp_path / "official.pt")


def test_other_networks_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(layers(ENCODER), path)
    with pytest.raises(MapError, match="res3_conv1"):
        check_head(path)
    with pytest.raises(MapError, match="no R2Former"):
        check_r2former(path)
    torch.save(ace_head(), path)
    with pytest.raises(MapError, match="lacks 'conv1.weight'"):
        check_encoder(path)
    torch.save({**layers(ENCODER), "conv1.bias": torch.full((32,), torch.nan)}, path)
    with pytest.raises(MapError, match="'conv1.bias' is not finite"):
        check_encoder(path)


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("check", [check_encoder, check_head, check_r2former])
def test_pickles_with_code_are_refused(tmp_path, capsys, check):
    torch.save({"conv1.weight": Bomb()}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"conv1.weight": Bomb()}))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(MapError):
            check(tmp_path / name)
    assert "executed" not in capsys.readouterr().out
