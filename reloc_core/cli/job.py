"""One job of a sweep in a process of its own: `python -m reloc_core.cli.job JSON`, for launchers."""

from __future__ import annotations

import json
import sys

from reloc_core.cli.hydra_app import open_overrides, sweep_job
from reloc_core.cli.main import EXIT_INTERRUPTED, EXIT_USER
from reloc_core.config import compose
from reloc_core.errors import RelocError


def main() -> int:
    """Compose and run the job that the argument describes; failures are in its `result.json`."""
    task = json.loads(sys.argv[1])
    verb, overrides = task["verb"], task["overrides"]
    try:
        cfg = compose(verb, open_overrides(verb, overrides))
        sweep_job(verb, cfg, overrides, task["output_dir"])
    except RelocError as error:
        print(f"reloc: error: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
