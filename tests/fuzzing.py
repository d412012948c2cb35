"""Seeded mutations of what people receive from others, and the promise they are held to.

An answer or a `RelocError`, nothing else, within bounds of time and memory.
"""

import copy
import json
import resource
import struct
import time

import numpy as np

from reloc_core.errors import RelocError

SECONDS = 2.0  # of CPU time for one case; all of them take milliseconds
MEGABYTES = 400.0  # growth of the peak over all cases
_ODD = (
    0, 1, -1, 2, 255, 65535, 2**31, 2**32 - 1, 2**63, 10**400, -(10**30), 0.5, 1e308, -1e-320, float("nan"),
    float("inf"), "", "a", "\0", "../../x", "x" * 5000, None, True, False, [], {}, [[]], {"a": 1}, [1, 2, 3],
)  # fmt: skip


def mutated_bytes(data, rng):
    """The bytes with a few flips, cuts, repeats, numbers or splices."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        size = len(data)
        at = int(rng.integers(0, size + 1))
        kind = rng.integers(0, 7)
        if kind == 0 and size:
            data[at % size] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 64))]
        elif kind == 2:
            data[at:at] = data[at : at + int(rng.integers(1, 64))]
        elif kind == 3:
            number = int(rng.choice([0, 1, 2**15, 2**31 - 1, 2**32 - 1]))
            data[at : at + 4] = struct.pack(rng.choice(["<I", ">I"]), number)
        elif kind == 4:
            data[at : at + 8] = struct.pack("<d", rng.choice([np.nan, np.inf, 0.0, 1e300, -1.0]))
        elif kind == 5:
            data[at:at] = rng.integers(0, 256, int(rng.integers(1, 16)), np.uint8).tobytes()
        elif kind == 6 and rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def mutated_text(text, rng):
    """The text with words, lines and columns exchanged, dropped or replaced."""
    lines = text.splitlines()
    for _ in range(int(rng.integers(1, 5))):
        if not lines:
            break
        row = int(rng.integers(len(lines)))
        words = lines[row].split(" ")
        column = int(rng.integers(len(words)))
        kind = rng.integers(0, 6)
        if kind == 0:
            words[column] = str(_ODD[int(rng.integers(len(_ODD)))])
        elif kind == 1:
            del words[column]
        elif kind == 2:
            words.insert(column, words[int(rng.integers(len(words)))])
        elif kind == 3:
            other = int(rng.integers(len(lines)))
            lines[row], lines[other] = lines[other], lines[row]
            continue
        elif kind == 4:
            lines.insert(row, lines[row])
            continue
        else:
            del lines[row]
            continue
        lines[row] = " ".join(words)
    found = "\n".join(lines).encode("utf-8", "replace")
    return mutated_bytes(found, rng) if rng.random() < 0.3 else found


def mutated_json(value, rng):
    """A copy of a JSON value with some parts replaced, dropped, added or nested."""
    value = json.loads(json.dumps(value))
    for _ in range(int(rng.integers(1, 5))):
        holder = value
        for _ in range(int(rng.integers(1, 6))):
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = keys[int(rng.integers(len(keys)))]
            if isinstance(holder[key], dict | list) and rng.random() < 0.8:
                holder = holder[key]
                continue
            kind = rng.integers(0, 4)
            odd = copy.deepcopy(_ODD[int(rng.integers(len(_ODD)))])
            if kind == 0 and isinstance(holder, dict):
                del holder[key]
            elif kind == 1:
                holder[key] = [odd]
            else:
                holder[key] = odd
            break
    return value


def hold(read, case, seed):
    """Run a reader on a case; other exceptions than `RelocError` and slow cases fail."""
    begin = time.process_time()
    try:
        read()
        outcome = True
    except RelocError:
        outcome = False
    except (Exception, RecursionError) as error:
        raise AssertionError(
            f"case {case} of seed {seed}: {type(error).__name__}: {error}"
        ) from error
    seconds = time.process_time() - begin
    assert seconds < SECONDS, f"case {case} of seed {seed} took {seconds:.1f} s of CPU time"
    return outcome


def peak_megabytes():
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
