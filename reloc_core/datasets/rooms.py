"""Several scenes in one world: rooms side by side, given, listed as ESAC and GLACE do, or generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.config import TARGET, build
from reloc_core.datasets.config import RoomsConfig
from reloc_core.datasets.room.furniture import ROOM_SIZE
from reloc_core.datasets.room_lists import LISTS, published_list
from reloc_core.errors import ConfigError, DataError, did_you_mean
from reloc_core.interfaces import Dataset
from reloc_core.io.files import read_text
from reloc_core.types import Float64Array, Frame, Query

_MOST = 10_000  # rooms of a list


@dataclass(frozen=True)
class Room:
    """One of the rooms.

    Attributes:
        name: unique; begins the names of its frames.
        options: of its dataset, with the component's name under `_target_`.
        mean: (3,) what comes to lie on the room's place of the grid.
    """

    name: str
    options: Mapping[str, Any]
    mean: Float64Array


class RoomsDataset(Dataset):
    """The frames of all rooms, each room moved to its place in one world.

    Places are those of ESAC and GLACE: room i of n comes to (-row, -column, 0) times `spacing`, on a square
    grid of ceil(sqrt(n)) columns filled row by row. With `doors`, rooms of a row share walls instead, and
    rows lie `spacing` apart.

    Args:
        config: see `RoomsConfig`.

    Raises:
        ConfigError: no rooms, or options that a room's dataset refuses.
        DataError: the list or a room's files are bad.
    """

    def __init__(self, config: RoomsConfig) -> None:
        if bool(config.list_file) + bool(config.rooms) + bool(config.generate) != 1:
            raise ConfigError(
                "dataset=rooms needs either dataset.list_file=FILE or "
                "dataset.rooms=[{name: ace, root: DIR}, ...] or dataset.generate=N."
            )
        if not 0 <= config.generate <= _MOST or config.repeat < 0 or config.repeat == 1:
            raise ConfigError(
                f"dataset.generate must be in 0..{_MOST}, dataset.repeat 0 or at least 2."
            )
        if config.seeds < 0 or 0 < 4 * config.seeds < config.generate:
            raise ConfigError(
                "dataset.seeds must be 0 or at least a quarter of dataset.generate: every seed gives four "
                "rooms."
            )
        if config.doors:
            _check_doors(config)
        if not config.spacing > 0:
            raise ConfigError(f"dataset.spacing must be positive, got {config.spacing}.")
        rooms = _listed(config) if config.list_file else _given(config)
        at = _in_rows(config) if config.doors else places(len(rooms), config.spacing)
        shifts = at - np.stack([room.mean for room in rooms])
        names = [room.name for room in rooms]
        if config.only and config.only not in names:
            raise ConfigError(
                f"dataset.only: there is no room '{config.only}'.{did_you_mean(config.only, names)}"
            )
        chosen = [i for i, name in enumerate(names) if config.only in ("", name)]
        self._rooms: list[Dataset] = [build(rooms[i].options, "dataset") for i in chosen]
        units = {room.unit for room in self._rooms}
        if len(units) > 1:
            raise DataError("The rooms have different units: one world has one.")
        self._name = f"{config.only or f'{len(rooms)} rooms'}/{config.split}"
        self._index = [(r, i) for r, room in enumerate(self._rooms) for i in range(len(room))]
        labels, moves = [names[i] for i in chosen], shifts[chosen]
        self._frames = tuple(
            _moved(self._rooms[r].frames[i], labels[r], moves[r]) for r, i in self._index
        )
        self._notes = tuple(
            f"{label}: {note}"
            for label, room in zip(labels, self._rooms, strict=True)
            for note in room.notes
        )

    @property
    def name(self) -> str:
        """Number of rooms, or the only one, and the split."""
        return self._name

    @property
    def frames(self) -> Sequence[Frame]:
        """Metadata of all rooms, one room after the other."""
        return self._frames

    @property
    def notes(self) -> Sequence[str]:
        """Those of the rooms."""
        return self._notes

    @property
    def unit(self) -> str:
        """Of all rooms."""
        return self._rooms[0].unit

    @property
    def has_depth(self) -> bool:
        """Whether all rooms have depth."""
        return all(room.has_depth for room in self._rooms)

    def content(self) -> Iterator[bytes]:
        """That of every room."""
        for room in self._rooms:
            yield from room.content()

    def __getitem__(self, index: int) -> Query:
        """Read an image of its room."""
        room, inner = self._index[index]
        query, frame = self._rooms[room][inner], self._frames[index]
        depth = query.depth if self.has_depth else None
        return replace(
            query, name=frame.name, world_from_cam=frame.world_from_cam, sequence=frame.sequence,
            depth=depth, room=frame.room,
        )  # fmt: skip


def places(count: int, spacing: float) -> Float64Array:
    """Where the rooms come to lie, (count, 3)."""
    columns = int(np.ceil(np.sqrt(count)))
    row, column = np.divmod(np.arange(count), columns)
    return -spacing * np.stack([row, column, np.zeros(count)], 1).astype(np.float64)


def _check_doors(config: RoomsConfig) -> None:
    if config.doors < 0 or not config.generate:
        raise ConfigError("dataset.doors must not be negative, and needs dataset.generate.")
    if config.seeds % config.doors or (config.seeds and config.repeat):
        raise ConfigError(
            "With dataset.doors, dataset.seeds must be whole rows, and 0 with dataset.repeat."
        )
    if not config.spacing > ROOM_SIZE[1]:
        raise ConfigError(f"With dataset.doors, dataset.spacing must exceed {ROOM_SIZE[1]} m.")


def _in_rows(config: RoomsConfig) -> Float64Array:
    """Where rooms come to lie that share walls, (N, 3); the order of mirrored ones is mirrored, too."""
    row, place = np.divmod(np.arange(config.generate), config.doors)
    mirrored = np.arange(config.generate) // (config.seeds or config.generate) % 2 == 1
    x = np.where(mirrored, -1, 1) * place * ROOM_SIZE[0]
    return np.stack([x, -config.spacing * row, np.zeros(len(x))], 1).astype(np.float64)


def _moved(frame: Frame, room: str, shift: Float64Array) -> Frame:
    pose = frame.world_from_cam
    if pose is not None:
        pose = pose.copy()
        pose[:3, 3] += shift
    sequence = None if frame.sequence is None else f"{room}/{frame.sequence}"
    return replace(
        frame, name=f"{room}/{frame.name}", world_from_cam=pose, sequence=sequence, room=room
    )


def _given(config: RoomsConfig) -> list[Room]:
    """Rooms of `dataset.rooms`, or generated ones."""
    rooms = []
    for number, entry in enumerate(config.rooms or _generated(config)):
        if "name" not in entry:
            raise ConfigError(
                f"dataset.rooms takes entries such as {{name: ace, root: DIR}}, got {entry!r}."
            )
        options = {"split": config.split, **entry}
        options[TARGET] = options.pop("name")
        rooms.append(Room(f"{options[TARGET]}-{number}", options, np.zeros(3)))
    return rooms


def _generated(config: RoomsConfig) -> list[dict[str, Any]]:
    """Entries as of `dataset.rooms`."""
    of = config.seeds or config.generate
    again = [
        int(config.repeat > 0 and number % config.repeat == config.repeat - 1)
        for number in range(config.generate)
    ]
    drawn = [divmod(number - copy, of) for number, copy in enumerate(again)]
    seeds = [seed for _, seed in drawn]
    entries = []
    for number, (copy, (look, seed)) in enumerate(zip(again, drawn, strict=True)):
        first = number - number % config.doors if config.doors else number
        end = first + (config.doors or 1)
        room = replace(
            config.room, split=config.split, seed=seed, copy=copy, mirrored=look % 2 == 1,
            negative=look > 1, west=seeds[first:number], east=seeds[number + 1 : end],
        )  # fmt: skip
        entries.append({"name": "synthetic", **asdict(room)})
    return entries


def _listed(config: RoomsConfig) -> list[Room]:
    """Rooms of a list: a folder in ACE's format and the mean x y z of its cameras in each line."""
    path = Path(config.list_file).expanduser()
    folder = Path(config.root).expanduser() if config.root else path.parent
    known = config.list_file in LISTS and not path.is_file()
    text = published_list(config.list_file) if known else read_text(path)
    rooms: dict[str, Room] = {}
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines or len(lines) > _MOST:
        raise DataError(f"{path} lists {len(lines)} rooms; expected 1 to {_MOST}.")
    for number, parts in enumerate(lines, 1):
        try:
            name, mean = parts[0], np.array([float(part) for part in parts[1:]], np.float64)
        except ValueError:
            mean = np.zeros(0)
        if mean.shape != (3,) or not np.isfinite(mean).all():
            raise DataError(
                f"{path}, room {number}: expected a folder and the mean x y z of its cameras, found "
                f"'{' '.join(parts)[:80]}'."
            )
        if name in rooms:
            raise DataError(f"{path} lists {name} twice.")
        options = {TARGET: "ace", "root": str(folder / name), "split": config.split}
        rooms[name] = Room(name, options, mean)
    return list(rooms.values())
