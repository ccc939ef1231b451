"""FoldProcess: actors folded in an interpreter of their own, asked for over its pipes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

import eventstore
from eventstore.cli.arguments import Address
from eventstore.cli.exits import CommandFailed, Exit

# The largest state that a snapshot may have, written with every character escaped.
_LONGEST_ANSWER_BYTES = 512 * 1024 * 1024
_ERRORS_BYTES = 4096

# Where this package is not installed but found in the current directory, -P would hide it. What an interpreter has of
# its own comes first.
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from eventstore.cli.fold_child import main; sys.exit(main())"
_ROOT = str(Path(eventstore.__file__).parents[1])


class ChildFailed(CommandFailed):
    """A process that folds could not begin, or ended. The message says why."""


class FoldError(NamedTuple):
    """Why an actor cannot be folded there: the event's version, if it is one, the kind of error, and the reason."""

    version: int | None
    name: str
    reason: str


class FoldAnswer(NamedTuple):
    """What folding came to: digests of the state by version, up to the last one that was reached. `breaches` are
    handler, event type, version and call (`actors.replaying.determinism.Breach`)."""

    digests: dict[int, str]
    breaches: Sequence[tuple[str, str, int, str]]
    error: FoldError | None
    state: Any


class FoldProcess:
    """A process that is alive, and folds one actor after another."""

    def __init__(self, process: Process, kind: str, fingerprint: str, name: str, errors: IO[bytes]) -> None:
        self._process = process
        self._name = name
        self._errors = errors
        self.kind = kind
        self.fingerprint = fingerprint

    async def fold(
        self,
        key: str,
        through: int,
        *,
        start: int = 0,
        after: int = 0,
        stride: int = 1 << 30,
        also: Sequence[int] = (),
        watch: bool = False,
        state: bool = False,
    ) -> FoldAnswer:
        """Fold one actor up to a version, from the first event that is there or from the snapshot of version `start`,
        with stops every `stride` versions behind `after` and at those in `also`. `watch` notes what its handlers call,
        `state` gives the state at the end.

        Raises `ChildFailed`.
        """
        answer = await _asked(
            self._process,
            self._name,
            self._errors,
            {
                "key": key,
                "through": through,
                "start": start,
                "after": after,
                "stride": stride,
                "also": list(also),
                "watch": watch,
                "state": state,
            },
        )
        error = answer["error"]
        return FoldAnswer(
            dict(answer["digests"]),
            [(handler, type_, version, call) for handler, type_, version, call in answer["breaches"]],
            None if error is None else FoldError(error["version"], error["name"], error["reason"]),
            answer.get("state"),
        )


@asynccontextmanager
async def fold_process(
    address: Address,
    target: str,
    *,
    name: str,
    python: str = sys.executable,
    folder: str = "",
    shift_seconds: float = 0,
    environment: dict[str, str] | None = None,
) -> AsyncGenerator[FoldProcess, None]:
    """Start an interpreter that folds actors of the class that a target names, and end it behind the block.

    Its module is looked for in `folder` before what is installed. `name` is what messages call it. Raises
    `ChildFailed`.
    """
    with TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *(python, "-P", "-c", _PROGRAM, _ROOT),
            stdin=PIPE,
            stdout=PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
            limit=_LONGEST_ANSWER_BYTES,
            # Ctrl-C is for the program, which ends this one.
            start_new_session=True,
        )
        try:
            setup = {**address._asdict(), "target": target, "folder": folder, "shift_seconds": shift_seconds}
            begun = await _asked(process, name, errors, setup)
            yield FoldProcess(process, begun["kind"], begun["fingerprint"], name, errors)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _asked(process: Process, name: str, errors: IO[bytes], record: dict[str, Any]) -> dict[str, Any]:
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise ChildFailed(f"{name}: its pipes are closed")
    line = b""
    try:
        stdin.write(json.dumps(record).encode() + b"\n")
        await stdin.drain()
        line = await stdout.readline()
    except (BrokenPipeError, ConnectionResetError):
        line = await stdout.readline()
    if not line:
        code = await process.wait()
        raise ChildFailed(f"{name}: the process that folds has ended with {code}{_last_line(errors)}")
    answer: dict[str, Any] = json.loads(line)
    if "refused" in answer:
        failure = ChildFailed(f"{name}: {answer['refused']}")
        failure.code = Exit(answer["code"])
        raise failure
    return answer


def _last_line(errors: IO[bytes]) -> str:
    """What the process has said last: of a traceback that is the error."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - _ERRORS_BYTES))
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ", and has not said why"
