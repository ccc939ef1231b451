"""The projection of `cli_ledger` in two partitions."""

from __future__ import annotations

import cli_ledger  # type: ignore[import-not-found]


class Parts(cli_ledger.Amounts, name="amounts", kinds=("Account",), partitions=2):  # type: ignore[misc]
    pass
