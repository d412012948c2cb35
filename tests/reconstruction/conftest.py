import pytest
from reconstruction_tools import Rendered


@pytest.fixture(scope="session")
def room(tmp_path_factory):
    """Fourteen photos of a path through the room, and five of the other side of it."""
    return Rendered(tmp_path_factory.mktemp("photos") / "room", 40, [*range(14), *range(22, 27)])


@pytest.fixture(scope="session")
def walk(tmp_path_factory):
    """Consecutive frames, hardly moving from one to the next."""
    return Rendered(tmp_path_factory.mktemp("walk") / "walk", 400, range(28), width=256)
