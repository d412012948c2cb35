"""`python -m reloc_core.cli`, which is what torchrun starts."""

import sys

from reloc_core.cli.main import main

sys.exit(main())
