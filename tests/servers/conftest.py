"""Fixtures of the tests that look into servers' processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.alone import alone_with


@pytest.fixture
def service_user() -> Iterator[None]:
    """Nobody else runs programs as the service's user, by whose names it is told who has a hidden socket."""
    with alone_with("service-user"):
        yield
