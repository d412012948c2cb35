from dataclasses import replace

import cv2
import numpy as np
import pytest

from reloc_core.errors import DataError
from reloc_core.evaluation.video import RunVideo
from reloc_core.types import Camera, Localization, Query, Status

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
