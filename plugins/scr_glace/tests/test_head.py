import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scr_glace.networks.head import Head, HeadSpec, homogeneous_scale
from scr_glace.official.checkpoints import official_from_head

PUBLISHED = {
    "ACE": (HeadSpec(512, 512), 2_103_300, 4.2),
    "GLACE 7Scenes": (HeadSpec(768, 768), 4_727_812, 9.5),
    "GLACE rooms": (HeadSpec(768, 768, clusters=50), 4_766_262, 9.5),
    "GLACE Cambridge": (HeadSpec(768, 768, blocks=2), 6_499_588, 13.0),
    "GLACE Aachen": (HeadSpec(768, 768, blocks=3, mlp_ratio=2, clusters=50), 13_663_542, 27.3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_and_size_are_the_published_ones(name):
    spec, count, megabytes = PUBLISHED[name]
    head = Head(spec, torch.zeros(spec.clusters, 3))
    assert sum(p.numel() for p in head.parameters()) == count
    assert 2 * count / 1e6 == pytest.approx(megabytes, abs=0.06)


def test_homogeneous_scale():
    spec = HeadSpec(8)
    w = torch.tensor([0.0, -1000.0, 99.76, 1000.0, 99.0])
    h = homogeneous_scale(w, spec)
    torch.testing.assert_close(h[:4], torch.tensor([1.0, 0.25, 100.0, 100.0]))
    assert h[4] < 100
    beta = math.log(2) / 0.75
    for x in (-3.0, 0.5, 7.0):
        expected = math.log(1 + math.exp(beta * x)) / beta + 0.25
        assert float(homogeneous_scale(torch.tensor([x]), spec)) == pytest.approx(
            expected, rel=1e-5
        )


def reference(state, x, spec):
    """The published head on a feature map, from its official state dict, as 1x1 convolutions."""

    def conv(name, y, relu=True):
        y = F.conv2d(y, state[f"{name}.weight"].double(), state[f"{name}.bias"].double())
        return F.relu(y) if relu else y

    skip = conv("head_skip", x, False) if "head_skip.weight" in state else x
    y = skip + conv("res3_conv3", conv("res3_conv2", conv("res3_conv1", x)))
    for b in range(spec.blocks):
        y = y + conv(f"{b}c2", conv(f"{b}c1", conv(f"{b}c0", y)))
    z = conv("fc2", conv("fc1", y))
    out = conv("fc3", z, False)
    if spec.clusters > 1:
        weights = torch.softmax(conv("fcc", z, False), 1)
        anchor = (weights[:, :, None] * state["centers"].double()).sum(1)
    else:
        anchor = state["mean"].double()
    if not spec.homogeneous:
        return out + anchor
    beta, low, high = (float(state[k]) for k in ("h_beta", "max_inv_scale", "min_inv_scale"))
    h = (torch.log1p(torch.exp(beta * out[:, 3:])) / beta + low).clamp(max=high)
    return out[:, :3] / h + anchor


@pytest.mark.parametrize(
    "spec",
    [
        HeadSpec(16, 16),
        HeadSpec(24, 16, blocks=2, mlp_ratio=1.5),
        HeadSpec(24, 16, clusters=5),
        HeadSpec(16, 16, blocks=0, homogeneous=False),
    ],
)
def test_forward_equals_convolutions_of_the_official_layout(spec):
    torch.manual_seed(0)
    head = Head(spec, torch.randn(spec.clusters, 3))
    head.half().float()  # the official file is fp16: compare after rounding
    x = torch.randn(2, spec.in_channels, 3, 4, dtype=torch.float64)
    expected = reference(official_from_head(head), x, spec)
    vectors = x.float().permute(0, 2, 3, 1).reshape(-1, spec.in_channels)
    head.fp32_output = False
    got = head(vectors).reshape(2, 3, 4, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(got.double(), expected, rtol=2e-4, atol=1e-3)


def test_position_decoder_stays_in_the_convex_hull():
    centers = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    head = Head(HeadSpec(8, 8, homogeneous=False, clusters=4), centers)
    with torch.no_grad():
        head.fc3.weight.zero_()
        head.fc3.bias.zero_()
        points = head(torch.randn(200, 8) * 30)
    assert (points >= 0).all()
    assert (points.sum(-1) <= 1 + 1e-5).all()
    assert points.std() > 0


def test_last_layer_in_fp32_resolves_far_points():
    head = Head(HeadSpec(64, 64), torch.zeros(1, 3))
    x = torch.randn(500, 64)
    with torch.no_grad():
        exact = head.decode(head.embed(x) * 1000)
        with torch.autocast("cpu", torch.bfloat16):
            fine = head.decode(head.embed(x).float() * 1000)
            head.fp32_output = False
            coarse = head.decode(head.embed(x).float() * 1000)
    error = [
        float((y - exact).norm(dim=-1).median() / exact.norm(dim=-1).median())
        for y in (fine, coarse)
    ]
    assert error[0] < error[1]


def test_seeded_initialisation_matches_the_published_distribution():
    torch.manual_seed(0)
    head = Head(HeadSpec(768, 768), torch.zeros(1, 3))
    bound = 1 / np.sqrt(768)
    weight = head.res3_conv1.weight.detach()
    assert float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / np.sqrt(3), rel=0.01)
