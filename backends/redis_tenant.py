"""RedisTenant: the names under which one tenant's things stand in the journal's hashes and sorted sets.

A stream of no tenant stands under its id. One of a tenant's stands under NUL, tenant, NUL, id: no id and no tenant's
name holds a NUL, so that no two are the same, and all of one tenant are next to each other in the order of bytes. The
same goes for owners and projections. The keys themselves are all tenants': they hold streams by number.
"""

from __future__ import annotations

from collections.abc import Sequence

from eventstore.tenant import NO_TENANT

_NUL = b"\0"
_OWNER_BYTES = 16


class RedisTenant:
    """One tenant, or none."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self._prefix = b"" if tenant == NO_TENANT else _NUL + tenant.encode() + _NUL

    def name(self, id_: str) -> bytes:
        """The name of a stream, or of a projection's version."""
        return self._prefix + id_.encode()

    def owner(self, owner: bytes) -> bytes:
        """The name of a process."""
        return self._prefix + owner

    def own_id(self, name: bytes) -> bytes | None:
        """What stands behind the tenant in a name; None if it is another tenant's."""
        if name.startswith(self._prefix) and (self._prefix or not name.startswith(_NUL)):
            return name.removeprefix(self._prefix)
        return None

    def own_owner(self, name: bytes) -> bytes | None:
        """A process's id, whose bytes may be any, out of its name; None if it is another tenant's."""
        if name.startswith(self._prefix) and len(name) == len(self._prefix) + _OWNER_BYTES:
            return name.removeprefix(self._prefix)
        return None

    def bounds(self, after: str, kind: str | None = None) -> list[bytes]:
        """Pairs of bounds, as ZRANGEBYLEX has them, between which the streams behind an id are, or those of a kind."""
        if kind is None:
            # No id begins with a byte as low as that.
            first = b"(" + self.name(after) if after else b"[" + (self._prefix or b"\x01")
            return [first, b"(" + self._prefix[:-1] + b"\x01" if self._prefix else b"+"]
        bounds: list[bytes] = []
        low, wanted = after.encode(), kind.encode()
        if wanted > low:
            bounds += (b"[" + self._prefix + wanted, b"[" + self._prefix + wanted)
        # The others of the kind start with it and a dash, and behind a dash the next character is a dot.
        first, behind = wanted + b"-", wanted + b"."
        if low < first:
            bounds += (b"[" + self._prefix + first, b"(" + self._prefix + behind)
        elif low < behind:
            bounds += (b"(" + self._prefix + low, b"(" + self._prefix + behind)
        return bounds


def split(name: bytes) -> tuple[str, str]:
    """The tenant and the id of a stream's name."""
    if not name.startswith(_NUL):
        return NO_TENANT, name.decode()
    tenant, _, id_ = name[1:].partition(_NUL)
    return tenant.decode(), id_.decode()


def seen(own: str, wanted: Sequence[str]) -> list[bytes] | None:
    """Which tenants' events come: nobody else's than the own ones, if there are own ones. None: everybody's."""
    if own == NO_TENANT:
        return [tenant.encode() for tenant in wanted] or None
    return [own.encode()] if own in wanted or not wanted else []
