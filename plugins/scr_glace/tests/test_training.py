import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scr_glace.estimator import GlaceEstimator
from scr_glace.networks.encoder import AceEncoder, build_encoder
from scr_glace.networks.global_descriptor import build_descriptor
from scr_glace.networks.head import Head, HeadSpec
from scr_glace.networks.precision import autocast_dtype
from scr_glace.training.buffer import Batch
from scr_glace.training.mapper import Mapper, posed_frames
from scr_glace.training.trainer import Trainer

from reloc_core.errors import ConfigError, DataError, MapError, RelocError
from reloc_core.geometry import inverse, project, transform
from reloc_core.interfaces import Runtime
from reloc_core.training.checkpoint import Checkpoint
from reloc_core.training.processes import Processes
from reloc_core.types import Frame, Query


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, wall, start_run):
    """A finished map of the wall, the estimator that made it and the run's events."""
    config = module_config()
    run = start_run(tmp_path_factory.mktemp("maps") / "wall", config, wall)
    estimator = GlaceEstimator(config)
    estimator.fit(wall, run)
    return run.map.finish(), estimator, run.events


def module_config():
    import importlib.util

    spec = importlib.util.spec_from_file_location("scene", Path(__file__).parent / "conftest.py")
    scene = importlib.util.module_from_spec(spec)
    sys.modules["scene"] = scene
    spec.loader.exec_module(scene)
    return scene.tiny_config()


def pixel_error(evidence, query):
    projected, front = project(
        query.camera, transform(inverse(query.world_from_cam), evidence.points3d)
    )
    assert front.mean() > 0.95
    return np.nanmedian(np.linalg.norm(projected - evidence.points2d, axis=-1))


def test_maps_the_scene(mapped, wall):
    scene_map, estimator, events = mapped
    losses = [values["loss"] for event, values in events if event == "iteration"]
    assert losses[-1] < 0.3 * losses[0]
    errors = [pixel_error(estimator.estimate(wall[i]), wall[i]) for i in range(4)]
    assert np.median(errors) < 8.0  # one cell
    assert scene_map.info.details["parameters"] > 0
    assert scene_map.info.details["frames"] == len(wall)


def test_a_small_room_gives_as_many_samples_as_a_large_one(make_wall, start_run, tmp_path, config):
    wall = make_wall(12)
    wall._frames = [
        dataclasses.replace(f, room="small" if i < 3 else "large")
        for i, f in enumerate(wall.frames)
    ]
    config.global_descriptor.name = "none"
    encoder = build_encoder(config.encoder, "cpu")
    descriptor = build_descriptor(config.global_descriptor)
    run = start_run(tmp_path / "map", config, wall)
    mapper = Mapper(config, encoder, descriptor, Processes(), wall, run)
    visits = np.bincount(mapper._fill_buffer().frame.numpy(), minlength=12)
    assert visits[:3].tolist() == [8] * 3  # half of the 48 visits
    assert visits[3:].sum() == 24


def test_a_map_shows_its_points(mapped, wall):
    scene_map, estimator, _ = mapped
    loaded = GlaceEstimator(estimator.config)
    loaded.load(scene_map, Runtime())
    shown, again = estimator.scene_points(), loaded.scene_points()
    np.testing.assert_array_equal(shown.points, again.points)
    np.testing.assert_array_equal(shown.colors, again.colors)
    assert len(shown.points) == len(shown.colors) > 20
    assert shown.colors.dtype == np.uint8
    # Every one lies within a pixel of the wall's texture as some mapping image shows it.
    least = np.full(len(shown.points), np.inf)
    for i in range(len(wall)):
        query = wall[i]
        pixels, front = project(
            query.camera, transform(inverse(query.world_from_cam), shown.points)
        )
        cells = np.stack(np.meshgrid(np.arange(3.5, 160, 8), np.arange(3.5, 128, 8)), -1).reshape(
            -1, 2
        )
        error = np.linalg.norm(pixels[:, None] - cells, axis=-1).min(1)
        least = np.minimum(least, np.where(front, error, np.inf))
    assert least.max() < 1.01


def test_maps_of_earlier_versions_show_no_points(mapped):
    scene_map, estimator, _ = mapped

    class Old:
        path = scene_map.path

        def tensors(self, name):
            assert name != "points"
            tensors, metadata = scene_map.tensors(name)
            return tensors, {k: v for k, v in metadata.items() if k != "points"}

    loaded = GlaceEstimator(estimator.config)
    loaded.load(Old(), Runtime())
    assert loaded.scene_points() is None


def test_evidence_is_a_dense_grid_in_pixels_of_the_query(mapped, wall):
    evidence = mapped[1].estimate(wall[0])
    assert evidence.kind == "dense"
    assert evidence.grid_shape == (16, 20)
    np.testing.assert_allclose(evidence.points2d[0], [3.5, 3.5])
    np.testing.assert_allclose(evidence.points2d[21], [11.5, 11.5])


def test_a_loaded_map_gives_the_same_evidence(mapped, wall):
    scene_map, estimator, _ = mapped
    loaded = GlaceEstimator(estimator.config)
    loaded.load(scene_map, Runtime())
    a, b = estimator.estimate(wall[2]), loaded.estimate(wall[2])
    np.testing.assert_array_equal(a.points2d, b.points2d)
    # Weights are stored in fp16.
    assert np.median(np.linalg.norm(a.points3d - b.points3d, axis=-1)) < 5e-3
    np.testing.assert_array_equal(loaded.estimate_batch([wall[1], wall[2]])[1].points3d, b.points3d)


class Killed(Exception):
    pass


def test_resuming_gives_the_map_of_an_undisturbed_run(
    mapped, wall, start_run, tmp_path, monkeypatch
):
    config = module_config()
    config.train.checkpoint_seconds = 0.1
    original = Trainer.iterate

    def iterate(self):
        if self.step == 117:
            raise Killed
        return original(self)

    monkeypatch.setattr(Trainer, "iterate", iterate)
    with pytest.raises(Killed):
        GlaceEstimator(config).fit(wall, start_run(tmp_path / "map", config, wall))
    monkeypatch.undo()
    run = start_run(tmp_path / "map", config, wall)
    saved = Checkpoint(run.map).resume("head")[0]
    assert 0 < saved <= 117
    resumed = GlaceEstimator(config)
    resumed.fit(wall, run)
    steps = [values["step"] for event, values in run.events if event == "iteration"]
    assert steps[0] == saved - saved % 10 + 10
    torch.testing.assert_close(resumed.scene.head.state_dict(), mapped[1].scene.head.state_dict())
    assert sorted(os.listdir(run.map.finish().path)) == [
        "encodings.safetensors",
        "global.safetensors",
        "head.safetensors",
        "map.yaml",
        "points.safetensors",
    ]


def test_two_processes_train_as_one(tmp_path):
    """The loss trajectory does not depend on the number of processes."""
    worker = Path(__file__).parent / "ddp_worker.py"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank, world, directory):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, str(worker), str(tmp_path / directory)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    processes = [start(0, 2, "two"), start(1, 2, "two"), start(0, 1, "one")]
    results = [process.communicate(timeout=600) for process in processes]
    assert all(p.returncode == 0 for p in processes), "\n".join(error for _, error in results)

    def losses(out):
        line = next(x for x in out.splitlines() if x.startswith("LOSSES "))
        return json.loads(line.removeprefix("LOSSES "))

    assert len(losses(results[0][0])) == 8
    two, one = losses(results[0][0]), losses(results[2][0])
    np.testing.assert_allclose(two[:3], one[:3], rtol=1e-5)
    # Later, training amplifies rounding: weights changed by 1e-7 drift as far (0.2 % at the end).
    np.testing.assert_allclose(two, one, rtol=1e-2)
    assert (tmp_path / "two" / "map.yaml").is_file()


def trainer(config, descriptors):
    """A trainer that is only asked for head inputs."""
    made = Trainer.__new__(Trainer)
    made.config, made.descriptors, made.processes = config, descriptors, Processes()
    made.seed, made.step, made.neighbours = 1, 0, None
    return made


def batch(n, channels, frames):
    zeros = torch.zeros(n, 3, 4)
    return Batch(torch.ones(n, channels).half(), zeros[:, 0, :2], zeros, zeros[:, 0, :2],
                 torch.arange(n) % frames, torch.arange(n), n)  # fmt: skip


def test_feature_diffusion(config):
    """Noise of 0.1 on 256 channels leaves a cosine of 0.53 with the clean descriptor."""
    table = F.normalize(torch.randn(5, 256, generator=torch.Generator().manual_seed(0)), dim=-1)
    made = trainer(config, table)
    samples = batch(4000, 64, 5)
    inputs = made.inputs(samples)
    assert inputs.shape == (4000, 320)
    torch.testing.assert_close(inputs[:, :256].norm(dim=-1), torch.ones(4000))
    cosine = (inputs[:, :256] * table[samples.frame]).sum(-1)
    assert float(cosine.mean()) == pytest.approx(0.53, abs=0.01)
    assert torch.equal(inputs[:, 256:], torch.ones(4000, 64))  # local channels stay clean
    # Two processes that hold halves of the batch see the same noise.
    half = dataclasses.replace(
        samples, features=samples.features[::2], frame=samples.frame[::2], slot=samples.slot[::2]
    )
    torch.testing.assert_close(made.inputs(half), inputs[::2])
    config.global_descriptor.noise_std = 0.0
    torch.testing.assert_close(made.inputs(samples)[:, :256], table[samples.frame])


def test_no_noise_on_local_channels_without_a_descriptor(config):
    """The published code corrupts 256 local channels when the global ones are switched off."""
    assert config.global_descriptor.noise_std > 0
    inputs = trainer(config, torch.zeros(5, 0)).inputs(batch(10, 512, 5))
    assert torch.equal(inputs, torch.ones(10, 512))


def test_ace_mode_and_position_decoder(wall, start_run, tmp_path):
    config = module_config()
    config.global_descriptor.name = "none"
    config.head.decoder_clusters = 4
    config.train.iterations = 20
    run = start_run(tmp_path / "map", config, wall)
    estimator = GlaceEstimator(config)
    estimator.fit(wall, run)
    assert estimator.scene.head.spec == HeadSpec(64, 128, clusters=4)
    assert isinstance(estimator.scene.head, Head)
    loaded = GlaceEstimator(config)
    loaded.load(run.map.finish(), Runtime())
    assert len(loaded.estimate(wall[0]).points3d) == 320


def test_far_from_the_origin(make_wall, start_run, tmp_path):
    """Geo-referenced coordinates keep their precision: the map is relative to an origin."""
    offset = np.array([4.5e5, 5.2e6, 300.0])
    far = make_wall(offset=offset)
    config = module_config()
    config.train.iterations = 120
    run = start_run(tmp_path / "map", config, far)
    estimator = GlaceEstimator(config)
    estimator.fit(far, run)
    query = far[0]
    assert pixel_error(estimator.estimate(query), query) < 16.0


def test_ensemble_member_maps_its_cluster(wall, config, start_run, tmp_path):
    config.ensemble.clusters, config.ensemble.index = 2, 1
    config.train.iterations = 5
    kept, poses = posed_frames(wall_of(wall, 24), config.ensemble)
    config.ensemble.index = 0
    others, _ = posed_frames(wall_of(wall, 24), config.ensemble)
    assert len(kept) == len(poses)
    assert len(others) >= len(kept) > 0
    assert sorted([*kept, *others]) == list(range(24))


def wall_of(wall, count):
    return type(wall)(count)


# ------------------------------------------------------------------------------ bad input


def test_too_few_images(make_wall, config, start_run, tmp_path):
    small = make_wall(count=3)
    with pytest.raises(DataError, match="3 images with a pose"):
        GlaceEstimator(config).fit(small, start_run(tmp_path / "m", config, small))


def test_images_without_poses(make_wall, config, start_run, tmp_path):
    unposed = make_wall()
    unposed._frames = [Frame(f.name, f.camera) for f in unposed._frames]
    with pytest.raises(DataError, match="0 images with a pose"):
        GlaceEstimator(config).fit(unposed, start_run(tmp_path / "m", config, None))


def test_a_diverging_training_stops_and_keeps_its_checkpoint(
    wall, config, start_run, tmp_path, monkeypatch
):
    config.train.checkpoint_seconds = 0.0
    original = Trainer.inputs

    def inputs(self, batch):
        values = original(self, batch)
        return values * float("nan") if self.step == 7 else values

    monkeypatch.setattr(Trainer, "inputs", inputs)
    run = start_run(tmp_path / "map", config, wall)
    with pytest.raises(RelocError, match="diverged at iteration 8"):
        GlaceEstimator(config).fit(wall, run)
    tensors, metadata = run.map.load_checkpoint()
    assert metadata["step"] == 7
    assert all(bool(t.isfinite().all()) for t in tensors.values())


def test_a_map_of_another_encoder_is_refused(mapped, tmp_path):
    scene_map, _, _ = mapped
    config = module_config()
    config.encoder.name = "ace"
    with pytest.raises(ConfigError, match=r"encoder\.weights=PATH"):
        GlaceEstimator(config)
    config.encoder.weights = str(tmp_path / "ace_encoder_pretrained.pt")
    torch.save(AceEncoder().state_dict(), config.encoder.weights)
    with pytest.raises(MapError, match="encoder 'xfeat', not with 'ace'"):
        GlaceEstimator(config).load(scene_map, Runtime())
    config = module_config()
    config.image.resolution = 480
    with pytest.raises(MapError, match="resolution 128"):
        GlaceEstimator(config).load(scene_map, Runtime())


def test_other_weights_of_the_same_encoder_are_refused(mapped, monkeypatch):
    from scr_glace.networks.encoder import XFeatEncoder

    scene_map, estimator, _ = mapped
    monkeypatch.setattr(XFeatEncoder, "identity", {"name": "xfeat", "weights": "0" * 16})
    with pytest.raises(MapError, match="other weights"):
        GlaceEstimator(estimator.config).load(scene_map, Runtime())


def test_a_buffer_smaller_than_a_batch_is_refused(wall, config, start_run, tmp_path):
    config.buffer.size = 100
    config.buffer.samples_per_image = 100
    with pytest.raises(ConfigError, match="fewer than one batch"):
        GlaceEstimator(config).fit(wall, start_run(tmp_path / "m", config, wall))


def test_estimating_without_a_map(config, wall):
    with pytest.raises(MapError, match="load or fit"):
        GlaceEstimator(config).estimate(wall[0])


@pytest.mark.parametrize("value", [0, 255])
def test_a_blank_image_is_no_exception(mapped, wall, value):
    frame = wall.frames[0]
    image = np.full((frame.camera.height, frame.camera.width, 3), value, np.uint8)
    evidence = mapped[1].estimate(Query("blank", frame.camera, image=image))
    assert np.isfinite(evidence.points3d).all()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("encoder.name", "xfaet", "Did you mean 'xfeat'"),
        ("loss.type", "tan", "Did you mean 'tanh'"),
        ("head.channels", 0, "at least 1"),
        ("optimizer.learning_rate_max", 0.0, "positive"),
        ("head.max_scale", 1.0, "exceed 1"),
        ("optimizer.warmup", 1.0, "between 0 and 1"),
        ("ensemble.index", 3, "below the 1 clusters"),
    ],
)
def test_values_that_make_no_sense(config, path, value, message):
    section, key = path.split(".")
    setattr(getattr(config, section), key, value)
    with pytest.raises(ConfigError, match=message):
        GlaceEstimator(config)


def test_precision():
    assert autocast_dtype("fp32", "cuda") == torch.float32
    assert autocast_dtype("auto", "cuda") == torch.float16
    assert autocast_dtype("auto", "cpu") in (torch.float32, torch.bfloat16)
    with pytest.raises(ConfigError, match="needs CUDA"):
        autocast_dtype("fp16", "cpu")
