"""Checkpoints written here by code that shares nothing with the reader."""

import struct

import numpy as np
import pytest
import torch
from kfnet_temporal.published.crc32c import crc32c
from kfnet_temporal.published.oflownet import OFlowNet
from kfnet_temporal.published.scoordnet import SCoordNet
from kfnet_temporal.published.tf_checkpoint import TensorBundle, decompress_snappy
from kfnet_temporal.published.tf_import import import_oflownet, state_of

from reloc_core.errors import MapError


def slow_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def mask(crc):
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(n):
    out = b""
    while n >= 128:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def snappy(data):
    """Literals of at most 60 bytes: valid, if not small."""
    out = varint(len(data))
    for i in range(0, len(data), 60):
        part = data[i : i + 60]
        out += bytes([(len(part) - 1) << 2]) + part
    return out


def block(pairs, compress):
    body, last = b"", b""
    restarts = []
    for n, (key, value) in enumerate(pairs):
        shared = 0
        if n % 4:
            while shared < min(len(last), len(key)) and last[shared] == key[shared]:
                shared += 1
        else:
            restarts.append(len(body))
        body += (
            varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        )
        last = key
    restarts = restarts or [0]
    body += b"".join(struct.pack("<I", r) for r in restarts) + struct.pack("<I", len(restarts))
    stored = (snappy(body) if compress else body) + bytes([1 if compress else 0])
    return stored + struct.pack("<I", mask(slow_crc(stored)))


def write_bundle(prefix, tensors, compress=False, per_block=5):
    data = b""
    pairs = [(b"", field(1, 1) + field(2, 0) + field(3, field(1, 1)))]
    for name in sorted(tensors):
        array = tensors[name]
        content = array.tobytes()
        shape = b"".join(field(2, field(1, n)) for n in array.shape)
        kind = {"float32": 1, "int64": 9}[array.dtype.name]
        crc = mask(slow_crc(content) if len(content) < 5000 else crc32c(content))
        entry = field(1, kind) + field(2, shape) + field(4, len(data)) + field(5, len(content))
        entry += varint(6 << 3 | 5) + struct.pack("<I", crc)
        pairs.append((name.encode(), entry))
        data += content
    table, handles = b"", []
    for i in range(0, len(pairs), per_block):
        chunk = pairs[i : i + per_block]
        stored = block(chunk, compress)
        handles.append((chunk[-1][0], varint(len(table)) + varint(len(stored) - 5)))
        table += stored
    meta = block([], False)
    meta_handle = varint(len(table)) + varint(len(meta) - 5)
    table += meta
    index = block(handles, compress)
    index_handle = varint(len(table)) + varint(len(index) - 5)
    table += index
    table += (meta_handle + index_handle).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    prefix.with_name(prefix.name + ".index").write_bytes(table)
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)


def test_known_checksum():
    assert crc32c(b"123456789") == 0xE3069283


def test_checksum_of_long_data_agrees_with_the_definition():
    data = np.random.default_rng(0).integers(0, 256, 70_001, np.uint8).tobytes()
    assert crc32c(data) == slow_crc(data)


def test_snappy_copies():
    # "abcd" then a copy of 8 bytes from 4 back (overlapping), then one with a two-byte offset.
    packed = (
        varint(16) + b"\x0cabcd" + bytes([(8 - 4) << 2 | 1, 4]) + bytes([(4 - 1) << 2 | 2, 12, 0])
    )
    assert decompress_snappy(packed) == b"abcdabcdabcdabcd"


@pytest.mark.parametrize("compress", [False, True])
def test_reads_what_was_written(tmp_path, compress):
    rng = np.random.default_rng(0)
    tensors = {
        f"scope/layer{i}/kernel": rng.normal(size=(3, i + 1)).astype(np.float32) for i in range(13)
    }
    tensors["global_step"] = np.array(500_000, np.int64)
    write_bundle(tmp_path / "model.ckpt-7", tensors, compress)
    bundle = TensorBundle(tmp_path / "model.ckpt-7")
    assert sorted(bundle.entries) == sorted(tensors)
    for name, value in tensors.items():
        assert np.array_equal(bundle.tensor(name), value)


def variables(network, scope, transposed=("upconv2", "upconv1", "upconv0")):
    rng = np.random.default_rng(1)
    out = {}
    for key, value in network.state_dict().items():
        layer, kind = key.rsplit(".", 1)
        shape = tuple(value.shape)
        if kind == "bias":
            out[f"{scope}/{layer}/bias"] = rng.normal(size=shape).astype(np.float32)
            continue
        if len(shape) == 4:
            a, b, h, w = shape
            shape = (h, w, b, a)  # in, out of convolutions; out, in of transposed ones
        else:
            shape = shape[::-1]
        out[f"{scope}/{layer}/kernel"] = rng.normal(size=shape).astype(np.float32)
    return out


def test_oflownet_from_a_checkpoint(tmp_path):
    stored = variables(OFlowNet(), "Temporal")
    stored["Temporal/feat1/kernel/Adam"] = np.zeros((3, 3, 3, 16), np.float32)
    stored["global_step"] = np.array(1, np.int64)
    write_bundle(tmp_path / "flow", stored)
    network = import_oflownet(tmp_path / "flow.index")
    kernel = stored["Temporal/feat2/kernel"]  # H, W, in, out
    assert network.feat2.weight[7, 3, 2, 1].item() == kernel[2, 1, 3, 7]
    kernel = stored["Temporal/upconv2/kernel"]  # H, W, out, in
    assert network.upconv2.weight[100, 20, 0, 2].item() == kernel[0, 2, 20, 100]
    kernel = stored["Temporal/fc1/kernel"]  # in, out
    assert network.fc1.weight[5, 90].item() == kernel[90, 5]


def test_every_scoordnet_variable_has_its_published_name_and_shape():
    asked = set()
    network = SCoordNet()
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}

    class Recorder:
        prefix = "memory"

        def tensor(self, name):
            asked.add(name)
            layer, kind = name.split("/")[1:]
            shape = shapes[f"{layer}.{'weight' if kind == 'kernel' else 'bias'}"]
            stored = (*shape[2:], shape[1], shape[0]) if kind == "kernel" else shape
            return np.zeros(stored, np.float32)

    state_of(Recorder(), "ScoreNet", network)
    layers = "conv1a conv1b conv2a conv2b conv3a conv3b conv4a conv4b conv5 conv6 conv7 prediction"
    assert asked == {f"ScoreNet/{n}/{k}" for n in layers.split() for k in ("kernel", "bias")}


def test_damage_is_reported(tmp_path):
    tensors = {"a": np.arange(100, dtype=np.float32), "b": np.zeros((2, 2), np.float32)}
    write_bundle(tmp_path / "x", tensors)
    data = tmp_path / "x.data-00000-of-00001"
    good = data.read_bytes()
    data.write_bytes(good[:50] + b"\xff" + good[51:])
    with pytest.raises(MapError, match="checksum"):
        TensorBundle(tmp_path / "x").tensor("a")
    data.write_bytes(good[:50])
    with pytest.raises(MapError, match="truncated"):
        TensorBundle(tmp_path / "x").tensor("a")
    index = tmp_path / "x.index"
    table = index.read_bytes()
    index.write_bytes(table[:10] + b"\xff" + table[11:])
    with pytest.raises(MapError, match="no readable"):
        TensorBundle(tmp_path / "x")
    index.write_bytes(table[:-1])
    with pytest.raises(MapError, match="no readable"):
        TensorBundle(tmp_path / "x")
    with pytest.raises(MapError, match="no checkpoint"):
        TensorBundle(tmp_path / "y")


def test_other_shapes_are_refused(tmp_path):
    stored = variables(OFlowNet(), "Temporal")
    stored["Temporal/fc1/kernel"] = np.zeros((128, 65), np.float32)
    write_bundle(tmp_path / "flow", stored)
    with pytest.raises(MapError, match="fc1"):
        import_oflownet(tmp_path / "flow")


def test_published_parameter_counts():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    flow = OFlowNet()
    assert count(SCoordNet()) == 24_406_724
    assert sum(count(getattr(flow, f"feat{i}")) for i in range(1, 8)) == 180_512
    assert sum(count(m) for m in (flow.fc1, flow.fc2, flow.uncertainty)) == 10_369
    assert count(flow) == 691_698


def test_networks_shapes_and_receptive_field():
    torch.manual_seed(0)
    net = SCoordNet()
    x = torch.rand(1, 3, 128, 136) * 255
    x.requires_grad_(True)
    points, std = net(x)
    assert points.shape == (1, 3, 16, 17)
    assert (std > 0).all()
    points[0, :, 7, 8].sum().backward()
    seen = torch.nonzero(x.grad.abs().sum((0, 1)) > 0)
    low, high = seen.amin(0), seen.amax(0)
    assert (high - low + 1).tolist() == [79, 79]
    assert ((high + low) / 2).tolist() == [8 * 7 + 7, 8 * 8 + 7]
