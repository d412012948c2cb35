from dataclasses import replace

import cv2
import numpy as np
import pytest

from reloc_core.errors import DataError
from reloc_core.evaluation.video import MappingVideo, RunVideo
from reloc_core.types import Camera, Localization, Query, ScenePoints, Status

CAMERA = Camera.pinhole(50.0, 64, 48)


def query(i):
    pose = np.eye(4)
    pose[:3, 3] = [0.1 * i, 0.02 * i * i, 0]
    image = np.full((48, 64, 3), (200, 20, 20), np.uint8)
    return Query(f"{i}", CAMERA, pose, i / 20, "s", image=image)


def pictures(path):
    video = cv2.VideoCapture(str(path))
    found = []
    while True:
        ok, frame = video.read()
        if not ok:
            break
        found.append(frame[..., ::-1])
    return found, video.get(cv2.CAP_PROP_FPS)


def test_every_query_is_in_the_video(tmp_path):
    queries = [query(i) for i in range(6)]
    green = np.full((10, 10, 3), (20, 200, 20), np.uint8)
    with RunVideo(tmp_path / "v.mp4", queries) as video:
        for q in queries:
            found = Localization(Status.LOCALIZED, world_from_cam=q.world_from_cam)
            if q.name == "3":
                found = Localization.failure("lost")
            video.add(q, found, {"green": green} if q.name == "2" else {})
    shown, rate = pictures(tmp_path / "v.mp4")
    assert len(shown) == 6
    assert rate == pytest.approx(20)
    last = shown[-1].astype(int)
    assert last.shape == (360, 1440, 3)
    assert np.abs(last[180, 240] - [200, 20, 20]).max() < 30  # the image
    assert np.abs(shown[2][100, 720].astype(int) - [20, 200, 20]).max() < 40  # the picture
    assert np.abs(shown[1][100, 720].astype(int)).max() < 30
    # The way: nothing but white at first, coloured pixels more and more.
    coloured = [int((np.ptp(s[20:, 960:].astype(int), axis=2) > 80).sum()) for s in shown]
    assert coloured[-1] > coloured[1] > 0


def test_unposed_queries_and_a_place_that_cannot_be_written(tmp_path):
    blind = replace(query(0), world_from_cam=None, timestamp=None)
    with RunVideo(tmp_path / "v.mp4", [blind]) as video:
        video.add(blind, Localization.failure("no"), {})
    assert len(pictures(tmp_path / "v.mp4")[0]) == 1
    with pytest.raises(DataError, match="mp4"):
        RunVideo(tmp_path / "no" / "v.mp4", [blind])


def test_points_of_a_map_come_to_their_places(tmp_path):
    """A red square in the plane of the way, green beside it at last, and one point that is lost in space."""
    side = np.linspace(-1, 1, 60)
    square = np.stack([*np.meshgrid(side, side), np.zeros((60, 60))], -1).reshape(-1, 3)
    video = MappingVideo(tmp_path / "v.mp4", [query(i) for i in range(6)])
    for title, height, colour in (("first", 0.4, (200, 20, 20)), ("last", 0.0, (20, 200, 20))):
        points = np.concatenate([square + np.array([0, 0, height]), [[1e6, 0, 0], [np.nan, 0, 0]]])
        video.add(title, ScenePoints(points, np.full((len(points), 3), colour, np.uint8)))
    assert video.write()
    shown, _ = pictures(tmp_path / "v.mp4")
    assert [s.shape for s in shown] == [(360, 960, 3)] * 2
    above, beside = shown[1][24:, :480], shown[1][24:, 480:]
    tall, wide = extent(above, channel=1)
    assert 250 < tall < 330  # the square fills the height from above,
    assert abs(tall - wide) < 12
    assert extent(beside, channel=1)[0] < 20  # and is a line from the side
    assert extent(shown[0][24:, :480], channel=0) == pytest.approx((tall, wide), abs=12)


def extent(image, channel):
    """Rows and columns that pixels of one colour span."""
    others = np.delete(image, channel, axis=2).max(-1).astype(int)
    return tuple(int(np.ptp(places)) for places in np.nonzero(image[..., channel] - others > 60))


def test_a_mapping_without_points_has_no_video(tmp_path):
    assert not MappingVideo(tmp_path / "v.mp4", [query(0)]).write()
    assert not (tmp_path / "v.mp4").exists()
    blank = MappingVideo(tmp_path / "v.mp4", [])
    blank.add("nothing yet", ScenePoints(np.zeros((0, 3))))
    assert blank.write()
    assert len(pictures(tmp_path / "v.mp4")[0]) == 1
