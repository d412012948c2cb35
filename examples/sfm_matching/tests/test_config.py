"""Options that make no sense are refused."""

import pytest
from sfm_matching.config import MatchingConfig, check

from reloc_core import ConfigError


@pytest.mark.parametrize("values", [{"images": 1}, {"retrieved": 0}, {"min_similarity": 2}])
def test_options_that_make_no_sense_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        check(MatchingConfig(**values))
