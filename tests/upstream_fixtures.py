"""For tests over http and https: `pytest_plugins = ("upstream_fixtures",)` takes it in."""

import pytest

import wire


@pytest.fixture(params=["http", "https"])
def certificates_or_none(
    request: pytest.FixtureRequest, certificates: wire.Certificates
) -> wire.Certificates | None:
    """The test runs over http and over https."""
    return certificates if request.param == "https" else None
