import math

import numpy as np
import pytest
import torch
from kfnet_temporal.filtering.kalman import (
    State,
    correct_common,
    gate,
    innovation,
    likelier,
    predict,
    update,
    warp,
)

from reloc_core.geometry import so3_exp

H, W = 6, 8


def state(mean, std, support=None):
    mean = torch.as_tensor(mean, dtype=torch.float32)
    if mean.ndim == 0:
        mean = mean.expand(3, H, W).clone()
    variance = torch.full((H, W), float(std) ** 2)
    return State(mean, variance, None if support is None else torch.full((H, W), float(support)))


def ramp():
    y, x = torch.meshgrid(torch.arange(H).float(), torch.arange(W).float(), indexing="ij")
    return torch.stack([x, y, 2 * x - y])


def test_equal_deviations_meet_in_the_middle():
    found = update(state(1.0, 0.1), state(3.0, 0.1))
    assert torch.allclose(found.mean, torch.tensor(2.0))
    assert torch.allclose(found.variance.sqrt(), torch.tensor(0.1 / math.sqrt(2)))


@pytest.mark.parametrize(
    ("prior", "measured", "kept"), [(0.1, math.inf, 1.0), (math.inf, 0.1, 3.0)]
)
def test_no_information_has_no_weight(prior, measured, kept):
    found = update(state(1.0, prior), state(3.0, measured))
    assert torch.allclose(found.mean, torch.tensor(kept))
    assert torch.allclose(found.variance, torch.tensor(0.01))


def test_nothing_known_on_both_sides_stays_unknown_and_finite():
    found = update(state(1.0, math.inf), state(3.0, math.inf))
    assert not found.known.any()
    assert torch.isfinite(found.mean).all()


def test_running_mean_of_independent_measurements():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20, 3, H, W, generator=generator)
    belief = state(values[0], 1.0)
    for value in values[1:]:
        belief = update(predict(belief, torch.zeros(2, H, W), torch.zeros(H, W)), state(value, 1.0))
    assert torch.allclose(belief.mean, values.mean(0), atol=1e-5)
    assert torch.allclose(belief.variance.sqrt(), torch.tensor(1 / math.sqrt(20)), atol=1e-6)


def test_integer_flow_shifts_exactly_and_the_border_knows_nothing():
    flow = torch.zeros(2, H, W)
    flow[0], flow[1] = 2.0, -1.0
    found = warp(State(ramp(), torch.full((H, W), 0.04)), flow)
    assert torch.allclose(found.mean[:, 1:, :-2], ramp()[:, :-1, 2:], atol=1e-5)
    assert torch.allclose(found.variance[1:, :-2], torch.tensor(0.04), atol=1e-6)
    assert torch.isinf(found.variance[0]).all()
    assert torch.isinf(found.variance[:, -2:]).all()


def test_zero_flow_keeps_the_last_row_and_column():
    found = warp(State(ramp(), torch.full((H, W), 0.04)), torch.zeros(2, H, W))
    assert torch.allclose(found.mean, ramp(), atol=1e-5)
    assert found.known.all()


def test_bilinear_warp_of_a_linear_map_is_exact():
    flow = torch.full((2, H, W), 0.3)
    found = warp(State(ramp(), torch.full((H, W), 0.04)), flow)
    inner = found.mean[:, :-1, :-1]
    expected = ramp()[:, :-1, :-1] + torch.tensor([0.3, 0.3, 0.3])[:, None, None]
    assert torch.allclose(inner, expected, atol=1e-5)


def test_unknown_cells_do_not_leak_into_their_neighbours():
    variance = torch.full((H, W), 0.01)
    mean = ramp()
    variance[2, 3], mean[:, 2, 3] = math.inf, 1e6
    found = warp(State(mean, variance), torch.full((2, H, W), 0.25))
    assert found.mean.abs().max() < 100
    assert torch.isinf(found.variance[2, 3])
    assert torch.isfinite(found.variance[2, 2])


def test_innovations_of_a_right_model_are_chi_square():
    generator = torch.Generator().manual_seed(1)
    big = (200, 250)
    prior = State(0.2 * torch.randn(3, *big, generator=generator), torch.full(big, 0.04))
    measured = State(0.1 * torch.randn(3, *big, generator=generator), torch.full(big, 0.01))
    nis = innovation(prior, measured)
    assert abs(float(nis.mean()) - 3) < 0.05
    assert abs(float((nis < 7.815).float().mean()) - 0.95) < 0.005
    per_axis = (measured.mean - prior.mean).square() / 0.05
    inside = ((per_axis > 0.0157) & (per_axis < 2.706)).float().mean()
    assert abs(float(inside) - 0.80) < 0.01


def test_fixed_point():
    v, q = 0.03**2, 0.01**2
    belief = state(0.0, 0.03)
    for _ in range(40):
        prior = predict(belief, torch.zeros(2, H, W), torch.full((H, W), math.sqrt(q)))
        belief = update(prior, state(0.0, math.sqrt(v)))
    steady = (-q + (q * q + 4 * q * v) ** 0.5) / 2
    assert float(belief.variance[0, 0]) == pytest.approx(steady, rel=1e-4)
    assert math.sqrt(steady) == pytest.approx(0.016, abs=0.0005)


@pytest.mark.parametrize(
    ("policy", "mean", "variance"),
    [("keep_prior", 1.0, 0.02), ("use_measurement", 3.0, 0.04), ("invalidate", None, math.inf)],
)
def test_policies_replace_rejected_cells_only(policy, mean, variance):
    prior, measured = state(1.0, 0.1), state(3.0, 0.2)
    posterior = update(prior, measured)
    rejected = torch.zeros(H, W, dtype=torch.bool)
    rejected[2, 3] = True
    found = gate(prior, measured, posterior, rejected, policy, growth=2.0)
    assert float(found.variance[2, 3]) == pytest.approx(variance)
    if mean is not None:
        assert torch.allclose(found.mean[:, 2, 3], torch.tensor(mean))
    assert torch.equal(found.mean[:, ~rejected], posterior.mean[:, ~rejected])


def test_the_side_with_more_support_wins_and_pays():
    rejected = torch.ones(H, W, dtype=torch.bool)
    weak, strong = state(1.0, 0.1, support=2.0), state(3.0, 0.1, support=5.0)
    for prior, measured in ((weak, strong), (strong, weak)):
        found = likelier(prior, measured, update(prior, measured), rejected, 0.5, 30.0)
        assert torch.allclose(found.mean, torch.tensor(3.0))
        assert torch.allclose(found.support, torch.tensor(4.0))


def test_agreement_adds_support_up_to_a_bound():
    nothing = torch.zeros(H, W, dtype=torch.bool)
    a, b = state(1.0, 0.1, support=20.0), state(1.0, 0.1, support=15.0)
    found = likelier(a, b, update(a, b), nothing, 0.5, 30.0)
    assert torch.allclose(found.support, torch.tensor(30.0))


def test_a_shared_rigid_error_is_removed():
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(3, H, W, generator=generator)
    centre = truth.flatten(1).mean(1)
    turn = torch.from_numpy(so3_exp(np.array([0.003, -0.002, 0.004]))).float()
    moved = torch.einsum("ij,jhw->ihw", turn, truth - centre[:, None, None])
    moved = moved + centre[:, None, None] + torch.tensor([0.02, 0.0, -0.01])[:, None, None]
    everywhere = torch.ones(H, W, dtype=torch.bool)
    prior, measured = State(moved, torch.full((H, W), 0.01)), state(truth, 0.1)
    found = correct_common(prior, measured, everywhere, 1.0)
    assert float((found.mean - truth).norm(dim=0).max()) < 1e-3
    half = correct_common(prior, measured, everywhere, 0.5)
    assert float((half.mean - (truth + moved) / 2).norm(dim=0).max()) < 1e-3
