"""Key frames of pictures whose motion is made."""

import cv2
import numpy as np
import pytest

from reloc_core.datasets.sharpness import small_grey
from reloc_core.reconstruction.keyframes import Motion, choose, measure, moved_by
from reloc_core.reconstruction.streams import _timing

RNG = np.random.default_rng(0)
TEXTURE = cv2.GaussianBlur(RNG.integers(0, 255, (300, 900)).astype(np.uint8), None, 1.5)
TEXTURE = cv2.normalize(TEXTURE, None, 0, 255, cv2.NORM_MINMAX)


def view(x, y=0):
    """A window of 320 x 240 into the texture, as RGB."""
    return np.dstack([TEXTURE[y : y + 240, x : x + 320]] * 3)


@pytest.mark.parametrize("step", [0, 3, 16])
def test_motion_is_the_shift_in_widths(step):
    assert moved_by(small_grey(view(100)), small_grey(view(100 + step))) == pytest.approx(
        step / 320, abs=0.002
    )


def test_parallax_counts_more_than_the_same_shift():
    """The upper half moves otherwise than the lower one: no turn explains that."""
    before = view(100)
    after = before.copy()
    after[:120], after[120:] = view(104)[:120], view(112)[120:]
    whole = moved_by(small_grey(before), small_grey(view(108)))
    assert moved_by(small_grey(before), small_grey(after)) > 1.3 * whole


def test_another_picture_is_a_cut():
    assert moved_by(small_grey(view(0)), small_grey(view(500))) is None
    assert moved_by(small_grey(view(0)), small_grey(view(0))[:100]) is None


def test_an_empty_picture_does_not_move():
    grey = np.zeros((240, 320), np.uint8)
    assert moved_by(grey, grey) == 0


def test_the_sharpest_frame_of_every_stretch():
    """Eight pixels a frame; a stretch of 0.1 widths is four frames. Every other frame is blurred."""
    frames = []
    for number in range(40):
        image = view(8 * number)
        frames.append((number / 30, image if number % 2 else cv2.GaussianBlur(image, None, 2)))
    motion = measure(frames)
    chosen = choose(motion, 0.1, 100)
    assert len(chosen) in (10, 11)
    assert all(number % 2 for number in chosen)
    assert np.diff(chosen).max() <= 6
    assert len(choose(motion, 0.1, 4)) <= 4


def test_standing_still_gives_one_frame_and_a_cut_another():
    frames = [(i / 30, view(0)) for i in range(10)] + [(1 + i / 30, view(500)) for i in range(10)]
    motion = measure(frames)
    assert motion.cuts.nonzero()[0].tolist() == [0, 10]
    assert len(choose(motion, 0.05, 100)) == 2
    assert choose(measure([]), 0.05, 100) == []


def test_variable_frame_rates_are_said():
    def at(times):
        count = len(times)
        return Motion(np.array(times), np.zeros(count), np.zeros(count), np.zeros(count, bool))

    assert _timing(at(np.arange(30) / 30)) == []
    steps = np.tile([1 / 30, 1 / 10], 15)
    (said,) = _timing(at(np.cumsum(steps)))
    assert "the frame rate varies (10 to 30 a second)" in said
