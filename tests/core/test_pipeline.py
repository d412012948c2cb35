"""Which solver and refiners localize with a map."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from reloc_core.cli.main import main
from reloc_core.errors import ConfigError, MapError
from reloc_core.mapped import UNVERIFIED_SIGMA
from reloc_core.pipeline import Pipeline
from reloc_core.types import Camera, PosePrior


@pytest.fixture
def train(toy_plugin, ace_scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(name, *more):
        base = ["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}"]
        assert main([*base, f"map_dir={name}", *more]) == 0
        return tmp_path / name

    return run


@pytest.fixture
def query(ace_scene):
    from reloc_core.config import build

    return build({"_target_": "ace", "root": str(ace_scene), "split": "test"}, "dataset")[0]


def test_an_estimator_brings_its_refiners(train, query):
    pipeline = Pipeline.from_map(train("map"))
    assert [name for name, _ in pipeline.refiners] == ["toy_push"]
    assert list(pipeline.pictures(query, pipeline.localize(query))) == ["mirrored, one of 12"]
    assert Pipeline.from_map("map", refiners=[]).refiners == ()


def test_a_preset_chooses_refiners_for_its_map(train, query):
    plain = Pipeline.from_map(train("plain"), refiners=[]).localize(query).world_from_cam
    pushed = Pipeline.from_map(train("pushed", "refiners=[{name: toy_push, push: 0.25}]"))
    found = pushed.localize(query)
    assert found.world_from_cam[:3, 3] == pytest.approx(plain[:3, 3] + 0.25 * plain[:3, 0])
    assert [name for name, _ in found.stages] == ["solve", "refine.toy_push"]
    stored = yaml.safe_load(
        (pushed_dir := train("again", "refiners=[]")).joinpath("map.yaml").read_text()
    )
    assert stored["pipeline"] == {"refiners": []}
    assert Pipeline.from_map(pushed_dir).refiners == ()


def test_what_a_refiner_says_of_a_pose_supports_it(train, query):
    pipeline = Pipeline.from_map(train("map"))
    plain = pipeline.localize(query)
    refiner = pipeline.refiners[0][1]
    refine = refiner.refine

    def speaking(query, localization, evidence=None):
        found = refine(query, localization, evidence)
        return replace(found, support={**found.support, "likeness": 2.5})

    refiner.refine = speaking
    found = pipeline.localize(query)
    assert found.support == {**plain.support, "signal.toy_push.likeness": 2.5}


def test_estimator_and_solver_hear_that_nobody_verified_a_camera(train, query):
    pipeline = Pipeline.from_map(train("map"), refiners=[])
    heard = []
    solve, estimate = pipeline.solver.solve_batch, pipeline.estimator.estimate_batch
    pipeline.solver.solve_batch = lambda evidence, cameras, runtime: (
        heard.extend(cameras) or solve(evidence, cameras, runtime)
    )
    pipeline.estimator.estimate_batch = lambda queries: (
        heard.extend(q.camera for q in queries) or estimate(queries)
    )
    own = query.camera
    longer = Camera.pinhole(1.1 * own.fx, own.width, own.height)
    for camera, sigma in (
        (own, 0),
        (longer, UNVERIFIED_SIGMA),
        (replace(longer, focal_sigma=0.003), 0.003),
    ):
        heard.clear()
        pipeline.localize(replace(query, camera=camera))
        assert [c.focal_sigma for c in heard] == [sigma, sigma]


def test_what_a_query_brings_in_vain_is_said(train, query):
    pipeline = Pipeline.from_map(train("map"))
    given = replace(
        query, depth=np.ones(query.image.shape[:2], np.float32), prior=PosePrior(np.eye(4))
    )
    unused = "the prior pose given, but not used by toy + prior + toy_push"
    assert pipeline.localize(given).note == unused  # the toy may look at depth
    assert pipeline.localize(query).note == ""
    assert not pipeline.stages[1].reads_depth  # solvers never see the query
    pipeline.stages = tuple(replace(stage, reads_depth=False) for stage in pipeline.stages)
    assert pipeline.localize(given).note == f"depth and {unused}"
    assert Pipeline.from_map("map", refiners=["pose_filter"]).localize(given).note == ""


def test_a_refiner_works_after_another_map_with_its_own(train, query):
    first, second = train("first"), train("second")
    pipeline = Pipeline.from_map(
        first, refiners=[{"name": "toy_push", "map_dir": str(second), "push": 1.0}]
    )
    np.testing.assert_allclose(
        pipeline.localize(query).stages[1][1][:3, :3], pipeline.localize(query).stages[0][1][:3, :3]
    )


def test_a_map_that_a_refiner_cannot_read_is_refused(train, tmp_path):
    made = train("map")
    content = yaml.safe_load((made / "map.yaml").read_text())
    content["component"] = "landmarks"
    (made / "map.yaml").write_text(yaml.safe_dump(content))
    other = train("other")
    with pytest.raises(MapError, match="map of 'landmarks', not of 'toy_push'"):
        Pipeline.from_map(other, refiners=[{"name": "toy_push", "map_dir": str(made)}])


def test_extra_datasets_need_a_name(train, ace_scene, capsys):
    train("map", f"extra_datasets=[{{name: ace, root: {ace_scene}}}]")
    with pytest.raises(AssertionError):
        train("bad", "extra_datasets=[{root: x}]")
    assert "extra_datasets takes entries such as {name: ace" in capsys.readouterr().err


def test_a_refiner_without_any_map_says_how_to_make_one(toy_plugin):
    from reloc_core.interfaces import Runtime
    from reloc_core.pipeline import load_refiner
    from reloc_core.registry import default_registry

    with pytest.raises(ConfigError, match="made by 'reloc train' for toy"):
        load_refiner("toy_push", Runtime(), default_registry())
