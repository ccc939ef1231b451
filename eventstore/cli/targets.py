"""Targets: `module:Class` on the command line, resolved to a persistent actor's class."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any, cast

from actors.actor import PersistentActor, stream_id_of
from eventstore.cli.exits import WrongUsage
from eventstore.projections import Projection
from eventstore.store import EventStore


def actor_class(target: str, *, folder: str | None = None) -> type[PersistentActor[Any]]:
    """The class that `module:Class` names. Raises `WrongUsage`, which says what is wrong with it.

    Modules are looked for in the current directory first; in `folder` instead, if that is given ("": in none).
    """
    actor: type[PersistentActor[Any]] = _resolved(target, _is_actor, "a persistent actor", "bank:Account", folder)
    return actor


def projection_class(target: str) -> type[Projection]:
    """The projection that `module:Class` names. Raises `WrongUsage`."""
    projection: type[Projection] = _resolved(target, _is_projection, "a projection", "bank:Balances")
    return projection


def _resolved(target: str, is_wanted: Callable[[Any], bool], what: str, example: str, folder: str | None = None) -> Any:
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        raise WrongUsage(f"{target!r} names no class: write MODULE:CLASS, such as {example}")
    if "/" in module_name or module_name.endswith(".py"):
        raise WrongUsage(f"{module_name!r} is a file: name the module, such as {_module_for(module_name)}:{path}")
    module = imported_module(module_name, folder=folder)
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            raise WrongUsage(f"module {module_name!r} has no {path!r}{_known(module, is_wanted, what)}")
        found = getattr(found, name)
    if not is_wanted(found):
        raise WrongUsage(f"{target} is {_described(found)}, not {what}'s class{_known(module, is_wanted, what)}")
    return found


async def actor_keys(store: EventStore, cls: type[PersistentActor[Any]], keys: Sequence[str]) -> AsyncIterator[str]:
    """The keys given, or those of all actors of the class if none are. Raises `InvalidStreamId` before the first."""
    for key in keys:
        stream_id_of(cls, key)
    for key in keys:
        yield key
    if keys:
        return
    async for info in store.streams(kind=cls.kind):
        # A stream named by the kind alone belongs to no actor.
        if key := info.stream_id[len(cls.kind) + 1 :]:
            yield key


def imported_module(name: str, *, folder: str | None = None) -> ModuleType:
    """A module of the current directory, or of `folder`, or an installed one. Raises `WrongUsage`, which says what is
    wrong with it."""
    here = os.getcwd() if folder is None else folder
    if here and here not in sys.path:
        sys.path.insert(0, here)
    try:
        # What a module prints while it is imported is not the command's output.
        with redirect_stdout(sys.stderr):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise WrongUsage(
                f"there is no module {error.name!r} {f'in {here} or ' if here else ''}among the installed packages"
            ) from error
        raise WrongUsage(f"module {name!r} cannot be imported: {error}") from error
    except Exception as error:
        raise WrongUsage(f"module {name!r} failed while it was imported: {type(error).__name__}: {error}") from error
    except SystemExit as error:
        raise WrongUsage(
            f'module {name!r} ended the program while it was imported: put what it runs under if __name__ == "__main__"'
        ) from error


def _is_actor(found: Any) -> bool:
    # A generic base of actors has no kind: it is not an actor yet.
    return isinstance(found, type) and issubclass(found, PersistentActor) and "kind" in dir(cast("type", found))


def _is_projection(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Projection) and found is not Projection


def _known(module: ModuleType, is_wanted: Callable[[Any], bool], what: str) -> str:
    whats = f"{what.partition(' ')[2]}s"
    names = sorted(name for name, value in vars(module).items() if is_wanted(value))
    return f"; its {whats}: {', '.join(names)}" if names else f"; it has no {whats}"


def _described(found: object) -> str:
    return f"the class {found.__qualname__}" if isinstance(found, type) else f"of type {type(found).__qualname__}"


def _module_for(file_name: str) -> str:
    return file_name.removesuffix(".py").strip("./").replace("/", ".")
