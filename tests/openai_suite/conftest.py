"""openai-python's suite and its mock provider, fetched once; skips where they cannot be had."""

from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from suite import Missing, MockProvider


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "mock_provider" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.openai_suite)
            item.add_marker(pytest.mark.timeout(seconds=900))


@pytest.fixture
def mock_provider(io_loop: IOLoop) -> Iterator[MockProvider]:
    """Steady, ready to be asked."""
    provider = MockProvider()
    try:
        provider.fetch()
    except Missing as missing:
        pytest.skip(str(missing))
    try:
        io_loop.run_sync(provider.start)
        yield provider
    finally:
        provider.close()
