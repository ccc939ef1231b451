"""Redis keeps the backend contract."""

from __future__ import annotations

import pytest

from backends.conformance import BackendContract


class TestRedis(BackendContract):
    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url
