"""The published networks: sizes, encodings and layouts as the papers' checkpoints have them."""

import numpy as np
import pytest
import torch
from nefes_refine.config import FieldConfig
from nefes_refine.field.scene import Scene
from nefes_refine.published.checkpoints import read_field
from nefes_refine.published.dfnet import DFNet, DFNetFeatures, load_dfnet, triplet_loss
from nefes_refine.published.mlp_field import (
    CoarseNetwork,
    Fusion,
    PaperField,
    PublishedExposure,
    RadianceMLP,
    sinusoidal,
)
from nefes_refine.refine.gradient_modes import channel_cosine_loss
from nefes_refine.weights import check_field

from reloc_core.errors import MapError


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def scene():
    return Scene(np.eye(4), -np.ones(3), np.ones(3), 0.0, 2.0)


def test_parameter_counts_are_the_published_ones():
    assert parameters(CoarseNetwork(128, 128)) == 524_612
    assert parameters(RadianceMLP(128, 128, transient=True)) == 185_609
    assert parameters(DFNet()) == 15_389_836


def test_encoding_order():
    x = torch.tensor([[0.3, -0.2, 0.9]])
    encoded = sinusoidal(x, 10)[0]
    assert encoded.shape == (63,)
    np.testing.assert_allclose(encoded[:3], x[0])
    np.testing.assert_allclose(encoded[3:6], torch.sin(x[0]), rtol=1e-6)
    np.testing.assert_allclose(encoded[6:9], torch.cos(x[0]), rtol=1e-6)
    np.testing.assert_allclose(encoded[9:12], torch.sin(2 * x[0]), rtol=1e-6)
    assert sinusoidal(x, 4).shape == (1, 27)


def test_exposure_network_matches_a_numpy_evaluation_of_its_layout():
    network = PublishedExposure()
    flat = network.params.detach().double().numpy()
    assert flat.shape == (3072,)
    histogram = np.array([0, 5, 10, 20, 30, 15, 10, 5, 5, 0.0])
    x = np.concatenate([histogram, np.ones(6)])
    start = 0
    for rows, columns in ((32, 16), (32, 32), (32, 32), (16, 32)):
        x = flat[start : start + rows * columns].reshape(rows, columns) @ x
        start += rows * columns
        if rows == 32:
            x = np.maximum(x, 0)
    found = network(torch.from_numpy(histogram).float()[None])[0]
    np.testing.assert_allclose(found.detach(), x[:12], rtol=1e-3, atol=1e-3)


def test_fusion_uses_batch_statistics_in_evaluation_mode_too():
    torch.manual_seed(0)
    fusion = Fusion(8).eval()
    colours, features = torch.rand(1, 3, 9, 9), torch.randn(1, 8, 9, 9)
    fused = fusion(colours, features)
    np.testing.assert_allclose(fused.detach().mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(fused.detach().var((0, 2, 3), correction=0), 1, atol=2e-2)


def test_features_do_not_train_the_density(scene):
    torch.manual_seed(0)
    field = PaperField(FieldConfig(width=16, coarse_samples=8, samples=8), scene, 5)
    directions = torch.tensor([[0.0, 0.0, 1.0]]).repeat(4, 1)
    generator = torch.Generator().manual_seed(0)
    found = field.render(torch.zeros(4, 3), directions, torch.full((1, 10), 10.0), generator)
    found.features.sum().backward(retain_graph=True)
    assert field.fine.static_sigma[0].weight.grad is None
    assert field.fine.static_rgb[0].weight.grad.abs().sum() > 0
    found.colour.sum().backward()
    assert field.fine.static_sigma[0].weight.grad.abs().sum() > 0


def test_transient_and_static_shares_cover_the_joint_ones(scene):
    """Sum of alpha_s T and alpha_t T is at least that of the joint alpha T."""
    sigma, moving = torch.rand(1, 6, dtype=torch.float64) * 3, torch.rand(1, 6).double() * 3
    lengths = torch.full((1, 6), 0.2, dtype=torch.float64)
    passed = torch.exp(
        -torch.nn.functional.pad(((sigma + moving) * lengths).cumsum(1)[:, :-1], (1, 0))
    )
    shares = [(1 - torch.exp(-s * lengths)) * passed for s in (sigma, moving, sigma + moving)]
    assert bool((shares[0] + shares[1] >= shares[2]).all())


def published_checkpoint(field):
    """A file as the published training writes it, made without the importer."""
    return {
        "global_step": 7,
        "network_fn_state_dict": {k: v.clone() for k, v in field.coarse.state_dict().items()},
        "network_fine_state_dict": {k: v.clone() for k, v in field.fine.state_dict().items()},
    }


def test_checkpoint_round_trip(tmp_path, scene):
    config = FieldConfig(name="mlp", coarse_samples=8, samples=8)
    torch.manual_seed(1)
    source, target = PaperField(config, scene, 128), PaperField(config, scene, 128)
    for p in target.parameters():
        torch.nn.init.zeros_(p)
    state = published_checkpoint(source)
    assert state["network_fn_state_dict"]["exposure_embedding.params"].shape == (3072,)
    assert state["network_fn_state_dict"]["fusion_net.net.6.weight"].shape == (128, 64, 5, 5)
    assert state["network_fn_state_dict"]["xyz_encoding_5.0.weight"].shape == (128, 191)
    assert state["network_fine_state_dict"]["transient_encoding.4.bias"].shape == (64,)
    torch.save(state, tmp_path / "nefes.tar")
    for part, tensors in read_field(tmp_path / "nefes.tar").items():
        target.get_submodule(part).load_state_dict(tensors)
    rays = torch.zeros(3, 3), torch.tensor([[0.1, 0.2, 1.0]]).repeat(3, 1)
    histogram = torch.full((1, 10), 10.0)
    with torch.no_grad():
        torch.testing.assert_close(
            source.render(*rays, histogram).colour, target.render(*rays, histogram).colour
        )


def test_checkpoints_that_do_not_fit_are_refused(tmp_path, scene):
    field = PaperField(FieldConfig(name="mlp"), scene, 128)
    state = published_checkpoint(field)
    del state["network_fine_state_dict"]["transient_beta.0.weight"]
    torch.save(state, tmp_path / "nefes.tar")
    with pytest.raises(MapError, match=r"transient_beta\.0\.weight"):
        check_field(tmp_path / "nefes.tar")
    torch.save({"network_fn_state_dict": {}}, tmp_path / "half.tar")
    with pytest.raises(MapError, match="network_fine_state_dict"):
        check_field(tmp_path / "half.tar")
    torch.save({"fc_pose.bias": torch.zeros(12)}, tmp_path / "dfnet.pt")
    with pytest.raises(MapError, match="lacks"):
        load_dfnet(tmp_path / "dfnet.pt")


def test_dfnet_taps_keys_and_grid(tmp_path):
    torch.manual_seed(0)
    network = DFNet().eval()
    keys = set(network.state_dict())
    assert {
        "encoder.28.weight",
        "adaptation_layers.adapt_layer_2.3.running_var",
        "fc_pose.bias",
    } <= keys
    assert not any(k.startswith("_") for k in keys)
    torch.save(network.state_dict(), tmp_path / "checkpoint-x.pt")
    loaded = load_dfnet(tmp_path / "checkpoint-x.pt").eval()
    image = torch.rand(1, 3, 48, 64)
    with torch.inference_mode():
        features, pose = loaded(image, (48, 64))
        assert features.shape == (3, 1, 128, 48, 64)
        assert pose.shape == (1, 3, 4)
        torch.testing.assert_close(features[0], network.features(image, (48, 64)))
        cells = DFNetFeatures(loaded, 4)((image[0].permute(1, 2, 0) * 255).byte().numpy())
    assert cells.shape == (128, 12, 16)


def test_channel_cosine():
    torch.manual_seed(0)
    a = torch.rand(5, 6, 7)
    assert float(channel_cosine_loss(a, a)) == pytest.approx(0, abs=1e-6)
    scaled = a * torch.rand(5, 1, 1)
    assert float(channel_cosine_loss(scaled, a)) == pytest.approx(0, abs=1e-6)
    assert float(channel_cosine_loss(a * torch.rand(1, 6, 7), a)) > 1e-3


def test_triplet_loss_takes_the_hardest_negative():
    real = torch.zeros(1, 2, 1, 1, 2)
    real[0, 1] = 10.0
    synthetic = real + 0.1
    # Other poses' features are 10 away in both entries, far beyond the margin of one.
    assert float(triplet_loss(synthetic, real, 1.0)) == 0
    real[0, 1] = 0.5
    synthetic = real + 0.1
    with torch.no_grad():
        loss = float(triplet_loss(synthetic, real, 1.0))
    # Both rows have the positive at 0.1 sqrt 2; of the negatives the closest pairing is 0.4 and 0.6.
    row = [max(0.1 - d + 1 / np.sqrt(2), 0) * np.sqrt(2) for d in (0.4, 0.6)]
    assert loss == pytest.approx(np.mean(row), abs=1e-3)
