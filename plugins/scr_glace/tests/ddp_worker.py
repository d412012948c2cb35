"""One process of the distributed test: maps the wall and prints the logged losses as JSON."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import torch

spec = importlib.util.spec_from_file_location("scene", Path(__file__).parent / "conftest.py")
scene = importlib.util.module_from_spec(spec)
sys.modules["scene"] = scene
spec.loader.exec_module(scene)

from scr_glace.estimator import GlaceEstimator  # noqa: E402

if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    config = scene.tiny_config()
    config.train.iterations, config.train.log_every = 40, 5
    config.buffer.size = 16 * 200
    # Adam amplifies rounding errors; a small step keeps the runs comparable.
    config.optimizer.learning_rate_max = config.optimizer.learning_rate_min = 2e-4
    wall = scene.Wall()
    run = scene._start_run(Path(sys.argv[1]), config, wall, primary=rank == 0)
    GlaceEstimator(config).fit(wall, run)
    if rank == 0:
        run.map.finish()
        losses = [values["loss"] for event, values in run.events if event == "iteration"]
        print("LOSSES " + json.dumps(losses))
