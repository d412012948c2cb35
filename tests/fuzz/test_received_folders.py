"""Folders that people receive from others, damaged at random: an answer or a RelocError, nothing else."""

import hashlib
import json
import os
import random
import resource
import shutil
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import yaml

from reloc_core.config import config_of_map
from reloc_core.errors import RelocError
from reloc_core.evaluation.sweep_table import sweep_table
from reloc_core.evaluation.sweeps import read_sweep
from reloc_core.maps import Map, MapInfo, MapWriter
from reloc_core.registry import Component

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
SECONDS = 5.0
MEGABYTES = 500
CASES = [pytest.param(400, id="few"),
         pytest.param(10_000, id="many", marks=[pytest.mark.long, pytest.mark.real])]  # fmt: skip
ATOMS = [None, True, -1, 0, 10**30, 1e308, float("nan"), "", "${oc.env:HOME}", "../x", "\0", "x" * 5000, [], {},
         [[]], {"a": {"b": [1]}}, {1: 2}, "???", "!!python/name:os.system", 2**63, "${a", "ok", "1-1"]  # fmt: skip
RAW = [b"&a [*a]", b"a: &a [1]\nb: *a\n", b"{" * 300, b"- " * 300, b"\xff\xfe", b"!!binary x", b"? ", b": ", b"\0",
       b"<<: *x", b"1:" * 500, b"%YAML 9.9\n---\n", b"'", b'"', b"9" * 9000]  # fmt: skip


@dataclass
class Config:
    size: int = 3
    text: str = ""
    layers: list[int] = field(default_factory=list)


COMPONENT = Component("dataset", "toy", "nowhere:Toy", Config, "")


def damaged(rng, value):
    """A plain value with one part replaced, removed, repeated or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        copy = dict(value)
        choice = rng.random()
        if choice < 0.15:
            del copy[key]
        elif choice < 0.25:
            copy[rng.choice(["", "x", "_target_", "hydra", 7])] = copy.pop(key)
        else:
            copy[key] = damaged(rng, value[key])
        return copy
    if isinstance(value, list) and value and rng.random() < 0.7:
        copy = list(value)
        copy[rng.randrange(len(copy))] = damaged(rng, rng.choice(copy))
        return copy
    if isinstance(value, str) and rng.random() < 0.5:
        place = rng.randrange(len(value) + 1)
        return (
            value[:place]
            + rng.choice(["${", "=", ",", "'", "\\", "range(0,9999999999)", "[", "é", "~"])
            + value[place:]
        )
    return rng.choice(ATOMS)


def damaged_bytes(rng, data):
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        choice = rng.random()
        if choice < 0.4 and place < len(data):
            data[place] = rng.randrange(256)
        elif choice < 0.6:
            del data[place : place + rng.randint(1, 40)]
        else:
            data[place:place] = rng.choice(RAW)
    return bytes(data)


def check(use, cases, seed):
    """Run `use(rng)` in bounds; count the answers."""
    answers = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(cases):
        rng = random.Random(f"{seed} {case}")
        begin = time.process_time()
        try:
            use(rng)
            answers += 1
        except RelocError:
            pass
        except BaseException as error:
            raise AssertionError(
                f"case {case} of {seed}: {type(error).__name__}: {error}"
            ) from error
        assert time.process_time() - begin < SECONDS, f"case {case} of {seed} takes too long"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024
    return answers


@pytest.mark.parametrize("cases", CASES)
def test_maps(tmp_path, cases):
    info = MapInfo("dataset", "toy", "p", "1", {"size": 3, "text": "t", "layers": [1, 2]}, {"name": "r"}, "metre",
                   {"solver": {"_target_": "pnp"}})  # fmt: skip
    writer = MapWriter(tmp_path / "map", info)
    writer.save("head", {"w": np.ones((4, 3), np.float32), "n": np.arange(4)}, {"kind": "toy"})
    writer.finish()
    folder = tmp_path / "map"
    description, tensors = (
        (folder / "map.yaml").read_bytes(),
        (folder / "head.safetensors").read_bytes(),
    )
    content = yaml.safe_load(description)

    def use(rng):
        data, new = tensors, dict(content)
        kind = rng.random()
        if kind < 0.35:
            data = damaged_bytes(rng, tensors)  # with the right checksum
            new["files"] = {
                "head.safetensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            }
        elif kind < 0.75:
            new = damaged(rng, content)
        text = (
            yaml.safe_dump(new, sort_keys=False).encode()
            if kind < 0.75
            else damaged_bytes(rng, description)
        )
        (folder / "map.yaml").write_bytes(text)
        (folder / "head.safetensors").write_bytes(data)
        opened = Map.open(folder)
        config = config_of_map(COMPONENT, opened)
        assert os.environ["HOME"] not in repr(config)
        assert opened.bytes >= 0
        found, metadata = opened.tensors("head", "np", {"w": ("n", 3), "n": ("n",)})
        assert found["w"].shape[1] == 3
        assert isinstance(metadata, dict)

    answers = check(use, cases, "map")
    assert 0 < answers < cases


@pytest.mark.parametrize("cases", CASES)
def test_sweeps(tmp_path, cases):
    folder = tmp_path / "sweep"
    record = {"format": 1, "verb": "benchmark", "sampled": False,
              "overrides": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "estimator=toy", "seed=1,2",
                            "dataset.root='a b'", "map_dir=m${seed}"]}  # fmt: skip
    hydra = {"hydra": {"overrides": {"hydra": ["hydra/launcher=joblib"], "task": record["overrides"][2:]},
                       "sweeper": {"params": {"solver": "pnp,dsac"}}, "job": {"config_name": "benchmark"}}}  # fmt: skip
    result = {"status": "ok", "overrides": ["estimator=toy", "seed=1"], "metrics": {"median_translation_m": 0.1},
              "seconds": {"total": 3}, "dataset": {"fingerprint": "ab"}}  # fmt: skip

    def use(rng):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "0").mkdir(parents=True)
        (folder / rng.choice(["1", "00", "x", "999999999", "-1"])).mkdir()
        files = {"0/result.json": result, "multirun.yaml": hydra}
        if rng.random() < 0.5:
            files["sweep.json"] = record
        chosen = rng.choice(list(files))
        for name, value in files.items():
            value = damaged(rng, value) if name == chosen else value
            dump = yaml.safe_dump if name.endswith("yaml") else json.dumps
            data = dump(value).encode()
            if name == chosen and rng.random() < 0.3:
                data = damaged_bytes(rng, data)
            (folder / name).write_bytes(data)
        sweep = read_sweep(folder)
        for override in (*sweep.record.hydra, *sweep.record.task):
            assert "_target_" not in override
            assert "callbacks" not in override
        table = sweep_table(sweep)
        assert table.csv()
        assert table.markdown()
        assert table.latex()

    answers = check(use, cases, "sweep")
    assert 0 < answers < cases
