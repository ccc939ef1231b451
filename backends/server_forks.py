"""OpenConnections: a process's connections to servers, which a child of a fork is cut off from before it does anything.

A child has its parent's sockets. It has its event loop as well, and the system keeps one account for both of what they
look at. So a child that lets that loop run once more, if only to end it, would read what the server says to its parent,
who then waits for it in vain; and would ask the server to give up what its parent has asked for, as the drivers do for
who is cancelled.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet


class OpenConnection(Protocol):
    @property
    def transport(self) -> asyncio.WriteTransport | None: ...

    def cut_off(self) -> None:
        """Called in the child, where nothing that is done on the connection reaches the server any more: take it for
        lost."""


class OpenConnections:
    def __init__(self) -> None:
        self._open: WeakSet[OpenConnection] = WeakSet()
        os.register_at_fork(after_in_child=self._cut_off)

    def opened(self, connection: OpenConnection) -> None:
        """From now on it is its process's alone, for as long as somebody has it."""
        self._open.add(connection)

    def _cut_off(self) -> None:
        connections = list(self._open)
        self._open.clear()
        if not connections:
            return
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            for connection in connections:
                # The number stays the loop's to let go of; what the system looks at is still the parent's socket.
                if (number := _file_number(connection)) >= 0:
                    os.dup2(nothing, number, inheritable=False)
        finally:
            os.close(nothing)
        for connection in connections:
            # Its loop may be another thread's, or closed.
            with suppress(RuntimeError):
                _abort(connection)
            with suppress(RuntimeError):
                connection.cut_off()


def _abort(connection: OpenConnection) -> None:
    """Let whoever waits in the child's loop be told soon, instead of when his time is over."""
    if connection.transport is None:
        return
    try:
        connection.transport.abort()
    except OSError:
        # Something was still to be sent. The loop cannot take back that it wanted to be told when it can be: the system
        # does not look at the number. But it has forgotten it.
        connection.transport.abort()


def _file_number(connection: OpenConnection) -> int:
    """-1 if it is closed."""
    socket = None if connection.transport is None else connection.transport.get_extra_info("socket")
    return -1 if socket is None else int(socket.fileno())


OPEN_CONNECTIONS = OpenConnections()
