"""For all tests, those of the plugins too."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory):
    """Maps that tests fit are neither taken from nor kept in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RELOC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
