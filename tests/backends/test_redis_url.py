"""What a Redis URL may say, and that it never shows its password."""

from __future__ import annotations

import logging

import pytest

from backends.redis_url import parse_redis_url
from eventstore import BackendUnavailable, Durability, EventStore, InvalidStoreUrl
from eventstore.url import parse_store_url


@pytest.mark.parametrize(
    "wrong",
    [
        "redis://host/zero",
        "redis://host/-1",
        "redis://host/0/1",
        "redis://host:0",
        "redis://host:65536",
        "redis://host:port",
        "redis://one,two",
        "redis://host?prefix=",
        "redis://host?prefix=a{b",
        "redis://host?prefix=a}b",
        "redis://host?prefix=a%20b",
        "redis://host?prefix=a*",
        "redis://host?prefix=" + "x" * 65,
        "redis://host?durability=durable",
        "redis://host?durability=",
        "redis://host?connect_timeout=0",
        "redis://host?command_timeout=-1",
        "redis://host?command_timeout=nan",
        "redis://host?command_timeout=inf",
        "redis://host?pool_size=0",
        "redis://host?pool_size=1.5",
        "redis://host?pool_size=1000",
        "redis://host?pool_size=\u0663",
        "redis://host?db=1",
        "redis://host?ssl_ca_certs=ca.pem",
        "redis://host?socket_timeout=1",
        "rediss://host?ssl_cert_reqs=maybe",
        "rediss://host?ssl_check_hostname=maybe",
        "rediss://host?ssl_cert_reqs=none&ssl_check_hostname=true",
        "rediss://host?retry_on_timeout=true",
        "unix://",
        "unix:///",
        "unix:///run/",
        "unix://relative/path",
        "unix:///run/redis.sock?db=x",
        "unix:///run/redis.sock?ssl_ca_certs=ca.pem",
        "redis://:%ff@host",
    ],
)
def test_a_url_that_is_not_understood_is_refused(wrong: str):
    with pytest.raises(InvalidStoreUrl):
        EventStore.open(wrong)


def test_a_url_is_taken_apart():
    target = parse_redis_url(
        parse_store_url(
            "redis://app%40shop:p%2Fw%3A%23@db.local:6380/3?prefix=shop:1&durability=process-crash&connect_timeout=1.5"
            "&command_timeout=2&pool_size=7"
        )
    )
    assert (target.username, target.password) == ("app@shop", "p/w:#")
    assert (target.host, target.port, target.database, target.socket) == ("db.local", 6380, 3, "")
    assert (target.prefix, target.key) == ("shop:1", b"{shop:1}")
    assert target.durability is Durability.PROCESS_CRASH
    assert (target.connect_timeout, target.command_timeout, target.pool_size) == (1.5, 2.0, 7)
    assert target.tls is None


def test_what_a_url_leaves_out_has_a_default():
    target = parse_redis_url(parse_store_url("redis://"))
    assert (target.host, target.port, target.database, target.prefix) == ("localhost", 6379, 0, "journal")
    assert (target.username, target.password) == (None, None)
    assert target.durability is Durability.POWER_LOSS


def test_best_effort_asks_for_nothing():
    assert parse_redis_url(parse_store_url("redis://host?durability=best-effort")).durability is None


def test_an_ipv6_address_stands_in_brackets():
    target = parse_redis_url(parse_store_url("redis://[::1]:6380/0"))
    assert (target.host, target.port) == ("::1", 6380)


def test_a_socket_is_named_by_its_path():
    target = parse_redis_url(parse_store_url("unix://app:secret@/run/my%20redis.sock?db=2"))
    assert (target.socket, target.database) == ("/run/my redis.sock", 2)
    assert (target.username, target.password) == ("app", "secret")


def test_tls_verifies_the_certificate_and_the_name_unless_told_otherwise():
    assert parse_redis_url(parse_store_url("rediss://host")).tls == {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
    }
    assert parse_redis_url(parse_store_url("rediss://host?ssl_cert_reqs=none")).tls == {
        "ssl_cert_reqs": "none",
        "ssl_check_hostname": False,
    }


@pytest.mark.parametrize(
    "url",
    [
        "redis://app:SECRET@host/zero",
        "redis://:SECRET@host?prefix=a{b",
        "redis://:SECRET@host:port",
        "redis://:SEC/RET@host",
        "redis://:SEC/RET@host/0?prefix=a",
        "redis://:SEC?RET=x@host",
        "rediss://host?ssl_password=SECRET&other=1",
        "unix://app:SECRET@/run/",
    ],
)
def test_no_error_about_a_url_shows_its_password(url: str):
    with pytest.raises(InvalidStoreUrl) as refused:
        EventStore.open(url)
    shown = f"{refused.value} {refused.value!r}"
    assert "SEC" not in shown
    assert "RET" not in shown


async def test_neither_an_error_nor_a_log_line_of_a_failed_connection_shows_the_password(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.DEBUG)
    store = EventStore.open("redis://app:SECRET@127.0.0.1:1/0?connect_timeout=2")
    with pytest.raises(BackendUnavailable) as refused:
        await store.__aenter__()
    target = repr(parse_redis_url(parse_store_url("redis://app:SECRET@host")))
    assert "SECRET" not in f"{refused.value} {refused.value.__cause__!r} {store.url!r} {target} {caplog.text}"
