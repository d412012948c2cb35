"""Stand-ins for the tests of the server."""

import http.client
import json
import threading
import time

import cv2
import numpy as np

from reloc_core.types import Localization, Status

JPEG = {"Content-Type": "image/jpeg"}


def ask(port, method="POST", path="/localize", body=None, headers=JPEG, timeout=20):
    """Status, headers and JSON (or text) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read().decode()
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.status, response.headers, json.loads(text) if is_json else text
    finally:
        connection.close()


class FakeMap:
    class info:
        component = "fake"
        unit = "metre"

    bytes = 123


class FakeLocalizer:
    """Localizes after `seconds`; the pose tells the image's size and mean."""

    def __init__(self, seconds=0.0):
        self.map, self.seconds = FakeMap(), seconds
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Semaphore(0)

    def localize_query(self, query):
        image, camera = query.image, query.camera
        self.began.release()
        self.gate.wait(20)
        time.sleep(self.seconds)
        if image.mean() > 250:
            return Localization.failure("too bright")
        if image[0, 0, 0] == 66:
            raise ZeroDivisionError("a defect with a secret")
        pose = np.eye(4)
        pose[:3, 3] = camera.width, camera.fx, image.mean()
        return Localization(Status.LOCALIZED, world_from_cam=pose, covariance=np.eye(6), score=0.5)


def encoded(level=100, width=64, height=48, kind=".jpg"):
    image = np.full((height, width, 3), level, np.uint8)
    return cv2.imencode(kind, image)[1].tobytes()
