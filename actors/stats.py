"""SystemStats: what lives in an actor system, and what failed there."""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

from actors.supervisor import Failure

# What a report names and quotes: it is stored with every renewal of a lease.
_MOST_RESTARTED = 5
_QUOTED_LENGTH = 200


class SystemStats(NamedTuple):
    """What lives in an `ActorSystem` now, and what failed there since it was opened.

    `failures` are the actors that failed lately, with count and last error; `restarted` those of them that were
    restarted, the most often restarted first, and how often; `stopped_actors` those that supervision has stopped. Of
    each the newest 1,000 are named. `restarts` and `dead_letters` count all there ever were, `dead_letters_dropped`
    those that are not kept any more.
    """

    live: int
    recovering: int
    stopped: int
    failures: dict[str, tuple[int, str]]
    restarts: int
    restarted: dict[str, int]
    stopped_actors: list[str]
    last_failure: Failure | None
    dead_letters: int
    dead_letters_dropped: int

    def report(self) -> dict[str, Any]:
        """The figures as JSON takes them: totals, the last failure, and up to five actors by name."""
        last = self.last_failure
        return {
            "live": self.live,
            "recovering": self.recovering,
            "stopped": self.stopped,
            "restarts": self.restarts,
            "dead_letters": self.dead_letters,
            "last_failure": None
            if last is None
            else {"actor": last.stream_id, "error": last.error[:_QUOTED_LENGTH], "at": last.at.isoformat()},
            "most_restarted": dict(islice(self.restarted.items(), _MOST_RESTARTED)),
        }
