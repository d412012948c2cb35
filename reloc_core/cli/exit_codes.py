"""How `reloc` ends."""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
"""A defect, or a sweep some of whose jobs failed."""
EXIT_USER = 2
"""Something to correct; a message says what."""
EXIT_INTERRUPTED = 130
