import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scr_glace.config import EncoderConfig, GlobalConfig, ImageConfig
from scr_glace.networks.encoder import build_encoder
from scr_glace.networks.global_descriptor import VladDescriptor, build_descriptor, read_feature_file
from scr_glace.networks.r2former import R2Former
from scr_glace.training.ensemble import hierarchical_split
from scr_glace.views import make_view

from reloc_core.errors import ConfigError, DataError, MapError
from reloc_core.features.kmeans import kmeans


class Silent:
    def advance(self, steps=1, **values):
        pass


@pytest.fixture(scope="module")
def encoder():
    return build_encoder(EncoderConfig())


@pytest.fixture(scope="module")
def fitted(encoder, wall):
    vlad = VladDescriptor(GlobalConfig(dimension=6, clusters=4))
    with torch.inference_mode():
        table = vlad.fit(wall, np.arange(len(wall)), encoder, ImageConfig(128), 1, Silent())
    return vlad, table.clone()


def test_vlad_describes_mapping_images_and_queries_alike(fitted, encoder, wall):
    vlad, table = fitted
    assert table.shape == (len(wall), 6)
    torch.testing.assert_close(table.norm(dim=-1), torch.ones(len(wall)))
    with torch.inference_mode():
        view = make_view(encoder, wall[3].image, wall[3].camera, ImageConfig(128))
        vector = vlad.describe(wall[3], encoder.describe(view.grey))
    torch.testing.assert_close(vector, table[3], atol=1e-4, rtol=1e-4)


def test_vlad_survives_its_state(fitted, encoder, wall):
    vlad, table = fitted
    other = VladDescriptor(GlobalConfig(dimension=6, clusters=4))
    other.load_state(vlad.state())
    with torch.inference_mode():
        view = make_view(encoder, wall[0].image, wall[0].camera, ImageConfig(128))
        vector = other.describe(wall[0], encoder.describe(view.grey))
    torch.testing.assert_close(vector, table[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(MapError, match="lacks 'words'"):
        other.load_state({})


def test_aggregation_equals_netvlad_in_numpy(fitted):
    vlad, _ = fitted
    x = F.normalize(torch.randn(50, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    words, vectors = vlad.words.double().numpy(), x.double().numpy()
    logits = vlad.sharpness * vectors @ words.T
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.zeros_like(words)
    for k, word in enumerate(words):
        for vector, weight in zip(vectors, weights, strict=True):
            expected[k] += weight[k] * (vector - word)
        expected[k] /= np.linalg.norm(expected[k])
    expected = expected.ravel() / np.linalg.norm(expected)
    np.testing.assert_allclose(vlad._aggregate(x).numpy(), expected, atol=1e-5)


def test_vlad_finds_the_nearest_view(fitted, wall):
    """Descriptors of images that see the same part of the wall are closer than the others'."""
    _, table = fitted
    centers = np.stack([wall.coordinates(i, np.array([[79.5, 63.5]]))[0] for i in range(len(wall))])
    distance = np.linalg.norm(centers[:, None] - centers, axis=-1)
    similarity = (table @ table.T).numpy()
    upper = np.triu_indices(len(wall), 1)
    rank = np.corrcoef(np.argsort(np.argsort(distance[upper])), similarity[upper])[0, 1]
    assert rank < -0.4


def test_r2former_layout():
    network = R2Former()
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    assert shapes["cls_token"] == shapes["dist_token"] == (1, 1, 384)
    assert shapes["pos_embed"] == (1, 1202, 384)
    assert shapes["patch_embed.proj.weight"] == (384, 3, 16, 16)
    assert shapes["head.weight"] == shapes["head_dist.weight"] == (256, 384)
    block = {
        k.removeprefix("blocks.11."): v for k, v in shapes.items() if k.startswith("blocks.11.")
    }
    assert block["attn.qkv.weight"] == (1152, 384)
    assert block["mlp.fc1.weight"] == (1536, 384)
    assert set(block) == {
        f"{n}.{p}"
        for n in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        for p in ("weight", "bias")
    }
    assert len(shapes) == 3 + 2 + 12 * 12 + 2 + 4


def test_r2former_attention_equals_pytorch():
    """A block against PyTorch's own pre-norm transformer layer with the same weights."""
    from scr_glace.networks.r2former import _Block

    torch.manual_seed(0)
    block = _Block(32, 4, 4).eval()
    layer = torch.nn.TransformerEncoderLayer(
        32, 4, 128, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(block.attn.qkv.weight)
        layer.self_attn.in_proj_bias.copy_(block.attn.qkv.bias)
        layer.self_attn.out_proj.load_state_dict(block.attn.proj.state_dict())
        layer.linear1.load_state_dict(block.mlp.fc1.state_dict())
        layer.linear2.load_state_dict(block.mlp.fc2.state_dict())
        x = torch.randn(2, 7, 32)
        torch.testing.assert_close(block(x), layer(x), atol=1e-5, rtol=1e-4)


def test_r2former_checkpoint(tmp_path, wall):
    torch.manual_seed(0)
    network = R2Former().eval()
    path = tmp_path / "CVPR23_DeitS_Rerank.pth"
    state = {f"module.backbone.{k}": v for k, v in network.state_dict().items()}
    torch.save({"model_state_dict": {**state, "module.reranker.weight": torch.zeros(2)}}, path)
    descriptor = build_descriptor(GlobalConfig("r2former", weights=str(path)))
    with torch.inference_mode():
        expected = network(R2Former.prepare(wall[0].image))[0]
    vector = descriptor._vector(wall[0])
    torch.testing.assert_close(vector, expected)
    assert float(vector.norm()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match=r"global_descriptor\.weights=PATH"):
        build_descriptor(GlobalConfig("r2former"))


def feature_folder(root, names, rows):
    (root / "rgb").mkdir(parents=True)
    for name in names:
        (root / "rgb" / name).touch()
    features = np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32)
    np.save(root / "features.npy", features)
    return root / "features.npy", features


def test_feature_file_in_the_published_format(tmp_path, wall, encoder):
    path, features = feature_folder(tmp_path / "a", ["002.jpg", "000.jpg", "001.color.png"], 3)
    names, read = read_feature_file(path)
    assert names == ["000", "001", "002"]
    np.testing.assert_array_equal(read, features)
    descriptor = build_descriptor(GlobalConfig("file", path=str(path)))
    table = descriptor.fit(wall, np.array([1, 2]), encoder, ImageConfig(), 0, Silent())
    np.testing.assert_array_equal(table.numpy(), features[1:])
    with pytest.raises(DataError, match="no descriptor for 003"):
        descriptor.fit(wall, np.array([3]), encoder, ImageConfig(), 0, Silent())


def test_feature_files_that_do_not_fit(tmp_path):
    # The published extractor skips upper-case and other endings, which shifted rows silently.
    path, _ = feature_folder(tmp_path / "a", ["0.jpg", "1.jpg", "2.jpg"], 2)
    with pytest.raises(DataError, match="for 3 images"):
        read_feature_file(path)
    named = tmp_path / "named.npz"
    np.savez(named, names=np.array(["x.png"]), features=np.full((1, 4), np.nan))
    with pytest.raises(DataError, match="NaN"):
        read_feature_file(named)
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(DataError):
        read_feature_file(tmp_path / "broken.npy")
    with pytest.raises(DataError, match="no descriptor file"):
        read_feature_file(tmp_path / "absent.npy")
    with pytest.raises(ConfigError, match="path=PATH"):
        build_descriptor(GlobalConfig("file"))


def test_kmeans_finds_separated_clusters():
    rng = np.random.default_rng(0)
    truth = np.array([[0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 0, 10.0]])
    labels = np.repeat(np.arange(4), [50, 40, 30, 20])
    points = truth[labels] + rng.normal(0, 0.3, (140, 3))
    centers, found = kmeans(points, 4, np.random.default_rng(1))
    for k in range(4):
        assert len(set(found[labels == k])) == 1
        np.testing.assert_allclose(centers[found[labels == k][0]], points[labels == k].mean(0))


def test_kmeans_with_repeated_points():
    centers, labels = kmeans(np.zeros((5, 2)), 3, np.random.default_rng(0))
    assert np.isfinite(centers).all()
    assert len(labels) == 5


def test_hierarchical_split_is_ordered_by_size_and_repeatable():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2, 3], [40, 35, 30, 25])
    points = np.array([[0, 0, 0], [20, 0, 0], [0, 20, 0], [20, 20, 0.0]])[truth]
    points = points + rng.normal(0, 0.5, points.shape)
    labels = hierarchical_split(points, 4, np.random.default_rng(0))
    assert np.bincount(labels).tolist() == [40, 35, 30, 25]
    np.testing.assert_array_equal(labels, truth)
    np.testing.assert_array_equal(labels, hierarchical_split(points, 4, np.random.default_rng(0)))
