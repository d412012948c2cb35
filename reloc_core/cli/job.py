"""One job of a sweep in a process of its own: `python -m reloc_core.cli.job JSON`, for launchers."""

from __future__ import annotations

import json
import sys

from reloc_core.cli.exit_codes import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER
from reloc_core.cli.jobs import sweep_job
from reloc_core.cli.lifeline import end_with_owner
from reloc_core.composition import compose
from reloc_core.errors import RelocError
from reloc_core.overrides import open_overrides


def main() -> int:
    """Compose and run the job that the argument describes; failures are in its `result.json`."""
    end_with_owner()
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
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
