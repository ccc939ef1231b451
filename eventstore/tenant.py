"""Tenants: whose streams a store is about. A name is given by whoever opens the store, never by what is stored."""

from __future__ import annotations

import re
from typing import cast

from eventstore.errors import InvalidTenant

NO_TENANT = ""
"""The tenant of a store that was opened without one."""

MAX_TENANT_CHARACTERS = 64

# No control character, no quote, no space: a name is part of keys, of SQL text and of what is printed.
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:@-]{{0,{MAX_TENANT_CHARACTERS - 1}}}")


def checked_tenant(tenant: str) -> str:
    """Return the name, or raise `InvalidTenant`. Names are compared byte for byte: `acme` and `Acme` are two."""
    if not isinstance(cast("object", tenant), str):
        raise InvalidTenant(f"a tenant's name is text, not {tenant!r}: give tenant=str(…), the same text every time")
    if _NAME.fullmatch(tenant):
        return tenant
    if not tenant:
        raise InvalidTenant("a tenant's name cannot be empty: leave it out to open the store of no tenant")
    raise InvalidTenant(
        f"a tenant's name has 1 to {MAX_TENANT_CHARACTERS} characters out of A-Z a-z 0-9 . _ : @ - and begins with a "
        f"letter or a digit: not {tenant[: MAX_TENANT_CHARACTERS + 1]!r}"
    )
