"""Running sweeps in processes of their own."""

import subprocess
import sys

SMALL = ["dataset=synthetic", "dataset.width=64", "dataset.height=48", "dataset.train_frames=5",
         "dataset.test_frames=2", "report=false", "threads=1"]  # fmt: skip


def reloc(environment, *arguments, timeout=300):
    return subprocess.run(
        [sys.executable, "-m", "reloc_core.cli", *arguments],
        capture_output=True, text=True, timeout=timeout, env=environment,
    )  # fmt: skip
