"""Calibration against known truths: errors of known spread, support that tells right from wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scripted import Room

from reloc_core.calibration import (
    CalibrationConfig,
    Witnesses,
    fit_calibration,
    foreign_pictures,
    hold_out,
    support,
)
from reloc_core.calibration.fitting_odds import fit_odds
from reloc_core.calibration.fitting_spread import RightPose, fit_spread, widened
from reloc_core.calibration.model import Calibration, Odds, Spread, within_right
from reloc_core.calibration.support import novelty
from reloc_core.errors import ConfigError
from reloc_core.geometry import pose_plus
from reloc_core.interfaces import Runtime
from reloc_core.mapped import save_mapped_frames
from reloc_core.maps import MapInfo, MapWriter
from reloc_core.solvers.config import AveragingConfig, SingleReferenceConfig
from reloc_core.solvers.relative_poses import AveragingSolver, SingleReferenceSolver
from reloc_core.types import Camera, Correspondences, Frame, Localization, RelativePoses, Status

INFO = MapInfo("estimator", "scripted", "", "", {}, {"name": "room"})
CAMERA = Camera.pinhole(500.0, 640, 480)


def localization(pose, mask=None, **speaks):
    return Localization(
        Status.LOCALIZED,
        world_from_cam=pose,
        covariance=np.eye(6) * 1e-6,
        num_inliers=0 if mask is None else int(mask.sum()),
        inliers=mask,
        score=0.9,
        support=speaks,
    )


def evidence(rng, count=200, band=1.0):
    pixels = rng.uniform(0, 1, (count, 2)) * [640, 480 * band]
    return Correspondences(pixels, rng.uniform(3, 5, (count, 3)), kind="sparse")


# ------------------------------------------------------------------------------------- support


def test_many_matches_on_few_points_are_few_witnesses():
    rng = np.random.default_rng(0)
    spread = evidence(rng)
    ten = spread.points3d[np.arange(200) % 10]
    inliers = np.ones(200, bool)
    honest = support(spread, localization(np.eye(4), inliers), CAMERA)
    copied = support(replace(spread, points3d=ten), localization(np.eye(4), inliers), CAMERA)
    assert math.expm1(honest["inliers"]) > 150
    assert math.expm1(copied["inliers"]) == pytest.approx(10)
    assert copied["chance"] < honest["chance"]


@pytest.mark.parametrize("copies", [1, 2, 16])
def test_parts_that_repeat_claim_the_same_points(copies):
    rng = np.random.default_rng(0)
    given = evidence(rng)
    given = replace(given, points3d=given.points3d[np.arange(200) // copies])
    found = support(given, localization(np.eye(4), np.ones(200, bool)), CAMERA)
    different = math.ceil(200 / copies)
    assert found["distinct"] == pytest.approx(math.log((different + 0.5) / (200.5 - different)))
    dense = support(replace(given, kind="dense"), localization(np.eye(4)), CAMERA)
    assert "distinct" not in dense


def test_a_solver_that_asks_no_other_reference_speaks_for_none():
    eye = np.repeat(np.eye(4)[None], 5, 0)
    given = RelativePoses(eye, eye, names=tuple("abcde"), scale_known=True)
    asked, unasked = (
        support(given, solver.solve(given, CAMERA, Runtime()), CAMERA)
        for solver in (
            AveragingSolver(AveragingConfig()),
            SingleReferenceSolver(SingleReferenceConfig()),
        )
    )
    assert math.expm1(asked["inliers"]) == pytest.approx(5)
    assert not {"inliers", "ratio"} & set(unasked)


def test_a_thin_band_covers_little():
    rng = np.random.default_rng(0)
    inliers = np.ones(200, bool)
    whole = support(evidence(rng), localization(np.eye(4), inliers), CAMERA)
    band = support(evidence(rng, band=0.03), localization(np.eye(4), inliers), CAMERA)
    assert band["spread"] < whole["spread"] - 1.5
    assert band["cover"] < whole["cover"] - 0.5


def test_chance_agreement_is_what_the_binomial_says():
    """Against the exact expected number of triples times the tail's leading term, in SciPy."""
    from scipy.stats import binom

    from reloc_core.calibration.support import _surprise

    n, k, p = 300, 40, 0.01
    tests = (n - 3) * math.comb(k, 3)
    leading = math.comb(n, k) * p ** (k - 3)
    assert _surprise(n, k, p) == pytest.approx(-math.log10(tests * leading), rel=1e-9)
    assert binom.sf(k - 1, n, p) < 10 ** -_surprise(n, k, p) * 1e3
    assert _surprise(n, 3, p) == 0


def test_novelty_is_a_distance_over_the_depth():
    mapped = np.stack([np.eye(4)[:3]] * 2)
    mapped[1, 0, 3] = 10
    moved = np.eye(4)
    moved[0, 3] = 1.5
    assert novelty(moved, mapped, 3.0) == pytest.approx(0.5)
    turned = pose_plus(np.eye(4), [0, 0.5, 0, 0, 0, 0])
    assert novelty(turned, mapped, 3.0) == pytest.approx(0.1)


# ---------------------------------------------------------------------------------- covariance


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_a_covariance_that_is_too_small_is_scaled(factor):
    rng = np.random.default_rng(3)
    claimed = np.diag([1e-4] * 3 + [1e-3] * 3) ** 2 * 1.0
    used = [
        RightPose(rng.normal(size=6) * np.sqrt(np.diag(claimed)) * factor, claimed, 0.01, 2.0)
        for _ in range(60)
    ]
    spread = fit_spread(used)
    fresh = [rng.normal(size=6) * np.sqrt(np.diag(claimed)) * factor for _ in range(400)]
    stated = spread.covariance(claimed, 0.01, 2.0)
    mean = np.mean([e @ np.linalg.solve(stated, e) for e in fresh])
    assert 3 < mean < 9, (mean, spread)


def test_errors_that_grow_with_the_distance_are_learned_as_such():
    rng = np.random.default_rng(4)
    claimed = np.eye(6) * 1e-10

    def error(distance):
        sigma = 0.02 * distance
        return np.concatenate([rng.normal(size=3) * sigma, rng.normal(size=3) * sigma * 2.0])

    used = [RightPose(error(d), claimed, d, 2.0) for d in rng.uniform(0.01, 0.3, 80)]
    spread = fit_spread(used)
    for distance in (0.05, 0.6):
        stated = spread.covariance(claimed, distance, 2.0)
        errors = [error(distance) for _ in range(300)]
        assert 2.5 < np.mean([e @ np.linalg.solve(stated, e) for e in errors]) < 14


def test_long_tails_widen_the_covariance_and_short_ones_leave_it_alone():
    rng = np.random.default_rng(5)
    claimed = np.diag([1e-4] * 3 + [1e-3] * 3)
    spread = Spread(scale=1.0, floor=1e-9, growth=1e-9, doubt=0.0)

    def poses(count, factor):
        errors = rng.normal(size=(count, 6)) * np.sqrt(np.diag(claimed))
        errors[::5] *= factor
        return [RightPose(error, claimed, 0.01, 2.0) for error in errors]

    def inside(found, used):
        stated = found.covariance(claimed, 0.01, 2.0)
        return np.mean([p.error @ np.linalg.solve(stated, p.error) < 12.6 for p in used])

    fresh = poses(400, 2.5)
    wide = widened(spread, poses(100, 2.5))
    assert inside(spread, fresh) < 0.87
    assert inside(wide, fresh) > inside(spread, fresh) + 0.05
    assert 1.2 < wide.scale <= 1.5
    assert widened(spread, poses(100, 1.0)).scale < 1.12
    few = poses(10, 2.5)
    assert widened(spread, few) == spread


def test_a_pose_that_little_supports_gets_a_wider_covariance():
    odds = Odds(6.0, {"inliers": 2.0, "cover": 1.0})
    centre = {"inliers": 6.0, "cover": 0.5}
    assert odds.lack({"inliers": 7.0, "cover": 0.5}, centre) == 0
    assert (
        odds.lack({"inliers": 7.0, "cover": 0.0}, centre) == 0
    )  # more of one makes up for the other
    assert odds.lack({"inliers": 4.0, "cover": 0.5}, centre) == pytest.approx(4.0)
    spread, claimed = Spread(doubt=0.1), np.eye(6) * 1e-6
    usual, doubted = (spread.covariance(claimed, 0.2, 2.0, lack) for lack in (0.0, 4.0))
    np.testing.assert_allclose(doubted, 1.4**2 * usual)


# --------------------------------------------------------------------------------------- score


def test_what_a_doubted_camera_adds_is_not_scaled_down():
    """A solver that is too modest where the camera is right knows no better where it is not."""
    claimed, modest = np.eye(6), Spread(scale=0.5, floor=0.0, growth=0.0)
    assert modest.covariance(claimed, 0.0, 1.0) == pytest.approx(0.25 * claimed)
    doubted = modest.covariance(claimed, 0.0, 1.0, camera=-math.log(100))
    assert doubted == pytest.approx((0.99 + 0.01 * 0.25) * claimed)
    wide = Spread(scale=2.0, floor=0.0, growth=0.0)
    both = wide.covariance(np.stack([claimed, claimed]), np.zeros(2), 1.0, camera=np.array([0, -3]))
    assert both == pytest.approx(4 * np.stack([claimed, claimed]))


def test_more_support_is_never_worse_and_separates():
    rng = np.random.default_rng(5)
    true = [{"inliers": v, "signal.x": rng.normal()} for v in rng.normal(6, 0.3, 40)]
    false = [{"inliers": v, "signal.x": rng.normal()} for v in rng.normal(3, 0.5, 40)]
    centre = {"inliers": 6.0, "signal.x": 0.0}
    odds = fit_odds(true + false, np.arange(80) < 40, centre, 40)
    assert all(w >= 0 for w in odds.weights.values())
    assert odds.probability({"inliers": 6.0}, centre) > 0.95
    assert odds.probability({"inliers": 3.0}, centre) < 0.1


def test_a_claim_beyond_the_usual_makes_up_for_nothing():
    """Few points fit each other exactly."""
    true = [{"inliers": 5.0, "claimed": 5.0}] * 20
    centre = {"inliers": 5.0, "claimed": 5.0}
    odds = fit_odds(true, np.ones(20, bool), centre)
    few = {"inliers": 2.0, "claimed": 5.0}
    assert odds.probability({**few, "claimed": 9.0}, centre) == odds.probability(few, centre)
    assert odds.probability({**few, "claimed": 2.0}, centre) < odds.probability(few, centre)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_a_signal_that_tells_the_place_apart_speaks_in_whatever_unit_it_has(unit):
    """Queries farther from the mapped views than those held out have less of it, and are of the place."""
    rng = np.random.default_rng(7)
    true = [{"inliers": 2.0, "signal.x": unit * v} for v in rng.normal(0.95, 0.03, 40)]
    false = [{"inliers": 2.0, "signal.x": unit * v} for v in rng.normal(0.5, 0.06, 48)]
    centre = {"inliers": 2.0, "signal.x": unit * 0.95}
    odds = fit_odds(true + false, np.arange(88) < 40, centre, 48)
    held, farther, foreign = (
        odds.probability({"inliers": 2.0, "signal.x": unit * v}, centre) for v in (0.95, 0.75, 0.55)
    )
    assert held == pytest.approx(farther)
    assert held > 0.95
    assert foreign < 0.5


def test_whether_another_pose_explains_it_too_counts_once():
    mask = np.ones(200, bool)
    given = evidence(np.random.default_rng(8))
    alone = localization(np.eye(4), mask, alone=1.0)
    rival = replace(alone, score=0.9 * 0.6, support={"alone": 0.6})
    assert support(given, rival, CAMERA)["score"] == pytest.approx(
        support(given, alone, CAMERA)["score"]
    )


def test_what_cannot_be_told_apart_gets_the_share_of_the_right_ones():
    same = [{"inliers": 5.0}] * 60
    odds = fit_odds(same, np.arange(60) < 30, {"inliers": 5.0}, 30)
    assert 0.75 < odds.probability({"inliers": 5.0}, {"inliers": 5.0}) < 0.95


def made(own=False, errors=(0.004,) * 40, foreign=20, claimed=None, elsewhere=0, memorized=True):
    """A calibration of poses on a line with errors of some size and foreign pictures of small support.

    `elsewhere` of them look the same from two places, and were localized in the wrong one.
    """
    rng = np.random.default_rng(6)
    held = []
    for i, size in enumerate(errors):
        truth = np.eye(4)
        truth[0, 3] = 0.1 * i
        wrong = np.concatenate([rng.normal(size=3) * size / 2, rng.normal(size=3) * size])
        found = localization(pose_plus(truth, wrong), inliers=6 + rng.normal() / 5, depth=2.0)
        found = found if claimed is None else replace(found, covariance=claimed)
        held.append((Frame(str(i), CAMERA, truth), found))
        if i < elsewhere:
            pose = pose_plus(truth, np.array([0, 0, 0, 8.0, 0, 0]))
            support = {**found.support, "solver.alone": 0.5}
            held.append(
                (
                    Frame(f"{i} twice", CAMERA, truth),
                    replace(found, world_from_cam=pose, support=support),
                )
            )
    strange = [localization(np.eye(4), inliers=3 + rng.normal() / 5) for _ in range(foreign)]
    mapped = np.stack([f.world_from_cam[:3] for f, _ in held])
    witnesses = Witnesses(held, strange, mapped, 2.0, own, memorized)
    return fit_calibration(witnesses, CalibrationConfig())


def test_images_that_two_places_explain_say_nothing_of_the_others():
    plain, ambiguous = made(), made(elsewhere=30)
    assert ambiguous.details["ambiguous"] == 30
    assert ambiguous.details["usual_error"] == plain.details["usual_error"]
    for inliers in (6.0, 4.5, 3.0):
        one, other = (c.judge(localization(np.eye(4), inliers=inliers, depth=2.0))
                      for c in (plain, ambiguous))  # fmt: skip
        assert other.score == pytest.approx(one.score, abs=1e-6)
    # They are refused themselves, for what they are.
    twice = localization(np.eye(4), inliers=6.0, depth=2.0, **{"solver.alone": 0.4})
    assert "another place explains it" in ambiguous.judge(twice).reason


def test_foreign_support_is_refused_with_what_is_missing():
    calibration = made()
    good = calibration.judge(localization(np.eye(4), inliers=6.0, depth=2.0))
    assert good.localized
    assert good.score > 0.9
    bad = calibration.judge(localization(np.eye(4), inliers=3.0, depth=2.0))
    assert not bad.localized
    assert "too few different scene points agree" in bad.reason
    assert bad.world_from_cam is None


def test_a_coarse_method_is_not_refused_but_its_score_says_that_it_is_coarse():
    calibration = made(errors=(0.2,) * 40)
    found = calibration.judge(localization(np.eye(4), inliers=6.0, depth=2.0))
    assert found.localized
    assert found.score < 0.3
    assert np.sqrt(found.covariance[3, 3]) > 0.08


@pytest.mark.parametrize(
    ("errors", "narrowed"),
    [((0.004,) * 40, True), ((0.2,) * 40, False), ((0.008,) * 32 + (0.1,) * 8, False)],
    ids=["accurate", "coarse", "accurate for four in five"],
)
def test_the_claims_of_a_coarse_method_are_not_narrowed(errors, narrowed):
    """Held-out images between mapped neighbours are easier than queries for what learned them by heart."""
    wide = np.diag([errors[0] * 5] * 3 + [errors[0] * 10] * 3) ** 2
    calibration = made(errors=errors, claimed=wide)
    assert (calibration.spread.scale < 0.5) == narrowed
    assert (calibration.spread.scale >= 1.0) != narrowed


@pytest.mark.parametrize("size", [0.001, 0.02, 0.05, 0.3])
def test_the_probability_of_being_right_by_the_covariance_is_that_of_its_errors(size):
    rng = np.random.default_rng(8)
    covariance = np.diag([size / 2] * 3 + [size] * 3) ** 2
    errors = np.abs(rng.normal(size=(100_000, 2, 3))) * [[size / 2], [size]]
    turn, offset = np.linalg.norm(errors, axis=2).T
    share = min((turn <= np.radians(5)).mean(), (offset <= 0.025 * 2.0).mean())
    assert within_right(covariance, 2.0) == pytest.approx(share, abs=0.006)


def test_no_score_is_higher_than_the_covariance_allows():
    unsure = replace(
        localization(np.eye(4), inliers=6.0, depth=2.0),
        covariance=np.diag([0.01] * 3 + [0.1] * 3) ** 2,
    )
    found = made().judge(unsure)
    assert found.localized
    assert found.score == pytest.approx(within_right(found.covariance, 2.0))
    assert found.score < 0.5


def test_without_held_out_images_the_covariance_is_conservative():
    calibration = made(own=True)
    assert calibration.held_out == 0
    found = calibration.judge(localization(np.eye(4), inliers=6.0, depth=2.0))
    assert np.sqrt(found.covariance[3, 3]) > 0.006
    # One and a half times the standard deviation that the same errors ask for of unseen images.
    held_out = made().judge(localization(np.eye(4), inliers=6.0, depth=2.0))
    assert 1.2 < np.sqrt(found.covariance[3, 3] / held_out.covariance[3, 3]) < 2.2


def test_images_that_points_were_triangulated_from_tell_how_sure_a_solver_may_be():
    """A network may know them by heart; then they are no reason to believe it more than it does itself."""
    claimed = np.eye(6) * 0.04**2
    query = replace(localization(np.eye(4), inliers=6.0, depth=2.0), covariance=claimed)
    width = {
        known: np.sqrt(made(True, claimed=claimed, memorized=known).judge(query).covariance[3, 3])
        for known in (True, False)
    }
    assert width[True] >= 0.04
    # Ten times what it errs, where the errors are 0.004, and never less than the errors themselves.
    assert 0.004 < width[False] < 0.75 * width[True]


def test_how_errors_of_triangulated_points_grow_is_left_to_the_solver():
    """Its covariance grows with the distance; images of the map say nothing of a further growth."""
    claimed = np.eye(6) * 0.004**2
    near = replace(localization(np.eye(4), inliers=6.0, depth=2.0), covariance=claimed)
    far = replace(near, world_from_cam=pose_plus(np.eye(4), np.array([0, 3.0, 0, 0, 0, -9.0])))
    own, held_out = made(True, claimed=claimed, memorized=False), made(claimed=claimed)
    np.testing.assert_allclose(own.judge(far).covariance, own.judge(near).covariance)
    wider = held_out.judge(far).covariance[3, 3] / held_out.judge(near).covariance[3, 3]
    assert wider > 2


def test_what_a_support_lacks_lowers_the_score_once():
    """Its covariance is wider for it, and says no more of the score than the odds do."""
    calibration = made(claimed=np.eye(6) * 0.012**2)
    little = replace(
        localization(np.eye(4), inliers=5.0, depth=2.0), covariance=np.eye(6) * 0.16**2
    )
    odds, centre = calibration.right, calibration.centre
    lack = calibration.here.lack(little.support, centre)
    found = calibration.judge(little)
    usual = found.covariance / (1 + calibration.spread.doubt * lack) ** 2
    bound = within_right(usual, 2.0)
    assert lack > 0.5
    assert within_right(found.covariance, 2.0) < bound - 0.005
    assert found.score == pytest.approx(min(odds.probability(little.support, centre), bound))


def test_a_pose_that_nothing_supports_is_left_alone():
    predicted = localization(np.eye(4))
    assert made().judge(predicted) is predicted


def test_it_is_stored_as_strict_json_and_maps_with_infinities_are_still_read(tmp_path):
    ranges = {
        "signal.a": (0.25, math.inf),
        "signal.b": (-math.inf, math.inf),
        "signal.c": (0.1, 0.2),
    }
    kept = made()
    kept = replace(kept, here=replace(kept.here, ranges=ranges))
    writer = MapWriter(tmp_path / "new", INFO)
    kept.save(writer)
    scene_map = writer.finish()
    tensors, stored = scene_map.tensors("calibration", "np")
    json.dumps(stored, allow_nan=False)
    assert Calibration.of_map(scene_map).here.ranges == ranges

    writer = MapWriter(tmp_path / "old", INFO)
    stored["here"]["ranges"] = ranges
    writer.save("calibration", tensors, stored)
    assert Calibration.of_map(writer.finish()).here.ranges == ranges


def test_a_stored_calibration_judges_as_the_fresh_one_did(tmp_path):
    """Also by how far a query is from the mapped views, which the map keeps with its frames."""
    rng = np.random.default_rng(5)
    poses = [pose_plus(np.eye(4), rng.normal(size=6)) for _ in range(8)]
    fresh = replace(made(), mapped=np.stack(poses)[:, :3])
    writer = MapWriter(tmp_path / "map", INFO)
    save_mapped_frames(writer, [Frame(str(i), CAMERA, p) for i, p in enumerate(poses)])
    fresh.save(writer)
    stored = Calibration.of_map(writer.finish())
    for moved in (0.0, 0.3, 1.5):
        pose = pose_plus(poses[3], np.array([0, 0, 0, moved, 0, 0]))
        query = localization(pose, inliers=6.0, depth=2.0)
        ours, theirs = stored.judge(query), fresh.judge(query)
        np.testing.assert_allclose(ours.covariance, theirs.covariance, rtol=1e-12)
        assert ours.score == pytest.approx(theirs.score)


# ------------------------------------------------------------------------- what is learned from


def test_blocks_of_a_video_are_held_out_and_few_photographs_are_not():
    video = Room(400)
    held = hold_out(video, CalibrationConfig(), 1)
    assert len(held) == 24
    runs = np.split(held, np.flatnonzero(np.diff(held) > 1) + 1)
    assert max(map(len, runs)) >= 8
    assert min(map(len, runs)) <= 2
    assert (np.diff(held) > 0).all()
    assert held[0] > 0
    assert held[-1] < 399
    np.testing.assert_array_equal(held, hold_out(video, CalibrationConfig(), 1))
    assert len(hold_out(Room(20), CalibrationConfig(), 1)) == 0
    # A block of wanted // 2 images would be a fifth of one of many short sequences.
    many = Room(1600, sequences=[f"room {k // 100}" for k in range(1600)])
    held = hold_out(many, CalibrationConfig(), 1)
    assert len(held) == 42
    assert np.bincount(held // 100).max() <= 6
    photographs = Room(200, sequences=[None] * 200)
    held = hold_out(photographs, CalibrationConfig(), 1)
    assert len(held) == 12
    assert (np.diff(held) > 1).all()


def test_foreign_pictures_have_the_sizes_of_the_mapping_images_and_are_repeatable():
    room = Room(10)
    first, again = (list(foreign_pictures(room, 24, 5)) for _ in range(2))
    assert len(first) == 24
    for a, b in zip(first, again, strict=True):
        assert a.image.shape == (48, 64, 3)
        assert a.world_from_cam is None
        np.testing.assert_array_equal(a.image, b.image)
    # Every second one is a mapping image made impossible; the first of four is mirrored.
    for mirrored in first[::8]:
        assert any(np.array_equal(mirrored.image[:, ::-1], query.image) for query in room)


def test_wrong_options_are_refused():
    with pytest.raises(ConfigError, match=r"calibration"):
        CalibrationConfig.of({"fracton": 0.1})
    with pytest.raises(ConfigError, match="fraction"):
        CalibrationConfig(fraction=0.9)
