"""StoreUrl: taken apart once, and never printed with its secrets."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

import pytest

from eventstore import EventStore, InvalidStoreUrl
from eventstore.url import parse_store_url

CANARY = "s3cr3t"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{CANARY}@host/0",
        f"redis://user:{CANARY}@host:6379/0",
        f"postgresql://user:{CANARY}@host/db",
        f"postgresql://user:p%40{CANARY}@host/db",
        f"postgresql://host/db?password={CANARY}",
        f"postgresql://host/db?sslpassword={CANARY}",
        f"rediss://host/0?ssl_key_secret={CANARY}",
    ],
)
def test_no_secret_is_printed(url: str):
    parsed = parse_store_url(url)
    assert CANARY not in str(parsed)
    assert CANARY not in repr(parsed)
    assert parsed.raw == url


@pytest.mark.parametrize("url", [f"redis://:pa/{CANARY}@host/0", f"postgresql://user:{CANARY}/x@host/db"])
def test_a_password_with_a_slash_is_refused_without_being_shown(url: str):
    with pytest.raises(InvalidStoreUrl, match="%2F") as refused:
        parse_store_url(url)
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize("given", [None, Path("bank.db")])
def test_what_is_no_text_is_no_url(given: Any):
    with pytest.raises(InvalidStoreUrl, match=f"text and not a {type(given).__name__}"):
        EventStore.open(given)


def test_a_file_may_have_an_at_sign_in_its_name():
    assert parse_store_url("sqlite:///a@b.db").path == "/a@b.db"


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:hunter2?x@host/db", "postgresql://u:hunter2\u2100@host/db", "postgresql://u:p[hunter2@host/db"],
)
def test_a_password_that_makes_a_url_unreadable_is_not_in_the_traceback(url: str):
    with pytest.raises(InvalidStoreUrl) as caught:
        parse_store_url(url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("climbing", ["../my bank.db", "%2e%2e/my%20bank.db", "below/../../my%20bank.db"])
async def test_a_path_that_climbs_is_refused_with_what_to_write_instead(
    climbing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with EventStore.open(f"sqlite:///{tmp_path}/my%20bank.db"):
        pass
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InvalidStoreUrl, match=r"climbs with '\.\.'") as refused:
        EventStore.open(f"sqlite:///{climbing}?durability=process-crash")
    (instead,) = re.findall(r"write (\S+)", str(refused.value))
    assert instead.endswith("/my%20bank.db?durability=process-crash")
    async with EventStore.open(instead, create=False):
        pass
