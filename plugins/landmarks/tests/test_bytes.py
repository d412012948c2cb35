import pytest
import torch
import torch.nn.functional as F
from landmarks.shared.bytes import from_bytes, to_bytes


@pytest.mark.parametrize("channels", [64, 128, 2048])
def test_unit_vectors_keep_their_direction(channels):
    rng = torch.Generator().manual_seed(channels)
    vectors = F.normalize(torch.randn(500, channels, generator=rng), dim=1)
    stored = to_bytes(vectors)
    read = from_bytes(stored)
    assert stored.dtype == torch.int8
    assert (vectors * read).sum(1).min() > 0.9998
    # What is loaded and stored once more stays the same.
    assert torch.equal(to_bytes(read), stored)


def test_fp16_of_earlier_versions_is_read_as_it_is():
    vectors = F.normalize(torch.randn(5, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    assert torch.equal(from_bytes(vectors.half()), vectors.half().float())


def test_nothing_and_zero():
    assert from_bytes(to_bytes(torch.zeros(0, 64))).shape == (0, 64)
    assert not from_bytes(to_bytes(torch.zeros(1, 64))).any()
