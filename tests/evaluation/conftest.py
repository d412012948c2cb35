import pytest
from scripted import Room, Scripted


@pytest.fixture
def room() -> type[Room]:
    return Room


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted
