"""The contract of a backend as tests. A new backend is one class:

    from backends.conformance import BackendContract

    class TestMine(BackendContract):
        @pytest.fixture
        def url(self, tmp_path):
            return f"mine:///{tmp_path}/journal"

The URL names an empty journal, a new one for each test. What a backend cannot do it declares in its `Capabilities`,
and the tests of it are skipped. `cases.py` says which of the project's numbered cases are shown here.
Needs the extra `conformance` (pytest and pytest-asyncio).
"""

import pytest

# Before the import: pytest shows the values in a failed assertion only of modules it has been told of.
_PARTS = (
    "appending",
    "archives",
    "batches",
    "checkpoints",
    "commands",
    "concurrency",
    "epochs",
    "fixtures",
    "forgetting",
    "ids",
    "leases",
    "log",
    "moved",
    "ownership",
    "reading",
    "recovery",
    "repeats",
    "replicas",
    "seals",
    "snapshots",
    "sql",
    "subscriptions",
    "tenants",
    "truncation",
)
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))

from backends.conformance.contract import BackendContract  # noqa: E402
from backends.conformance.sql import SQLTransactions  # noqa: E402

__all__ = ["BackendContract", "SQLTransactions"]
