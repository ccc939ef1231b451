"""Each fault of the proxy happens, and where it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from .proxy import FaultProxy


class Echo:
    """A server that answers every line with itself, and remembers it."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.lines.append(line)
                writer.write(line)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()


@pytest_asyncio.fixture
async def echo() -> Echo:
    return Echo()


@pytest_asyncio.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with server, FaultProxy(*server.sockets[0].getsockname()) as proxy:
        yield proxy


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, line: bytes, timeout: float = 20) -> bytes:
        self.writer.write(line)
        async with asyncio.timeout(timeout):
            if answer := await self.reader.readline():
                return answer
        raise ConnectionResetError("the connection was ended in good order")


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def test_without_faults_bytes_pass_both_ways(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        assert await client.ask(b"a\n") == b"a\n"
    assert (proxy.accepted, proxy.bytes_from_server) == (1, 2)


async def test_latency_is_added_in_each_direction(proxy: FaultProxy) -> None:
    proxy.latency = 0.05
    async with connected(proxy) as client:
        loop = asyncio.get_running_loop()
        before = loop.time()
        await client.ask(b"a\n")
        assert loop.time() - before >= 0.1


async def test_a_stalled_proxy_answers_nobody_until_it_is_resumed(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        await client.ask(b"a\n")
        proxy.stall()
        with pytest.raises(TimeoutError):
            await client.ask(b"b\n", timeout=0.05)
        async with connected(proxy) as late:
            with pytest.raises(TimeoutError):
                await late.ask(b"c\n", timeout=0.05)
            proxy.resume()
            assert await late.reader.readline() == b"c\n"
        assert await client.reader.readline() == b"b\n"


async def test_a_reset_ends_every_connection_and_not_the_next(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        await client.ask(b"a\n")
        proxy.reset()
        with pytest.raises(ConnectionResetError, match="104|reset"):
            await client.ask(b"b\n")
    async with connected(proxy) as client:
        assert await client.ask(b"c\n") == b"c\n"


async def test_a_refusing_proxy_is_a_server_that_is_not_there(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        await client.ask(b"a\n")
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(proxy.host, proxy.port)
        assert await client.ask(b"b\n") == b"b\n"
    await proxy.accept()
    async with connected(proxy) as client:
        assert await client.ask(b"c\n") == b"c\n"


async def test_a_connection_is_cut_within_an_answer(proxy: FaultProxy) -> None:
    proxy.cut_after = 4
    async with connected(proxy) as client:
        assert await client.ask(b"a\n") == b"a\n"
        client.writer.write(b"long\n")
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(20):
                while await client.reader.read(1):
                    pass
    assert proxy.resets == 1


@pytest.mark.parametrize(("reset", "error"), [(True, ConnectionResetError), (False, TimeoutError)])
async def test_a_reply_is_lost_after_the_server_has_acted(
    proxy: FaultProxy, echo: Echo, reset: bool, error: type[Exception]
) -> None:
    async with connected(proxy) as client:
        proxy.lose_reply(to=b"COMMIT", reset=reset)
        assert await client.ask(b"BEGIN\n") == b"BEGIN\n"
        with pytest.raises(error):
            await client.ask(b"COMMIT\n", timeout=20 if reset else 0.3)
    assert proxy.reply_was_lost.is_set()
    assert proxy.lost_replies == 1
    assert echo.lines == [b"BEGIN\n", b"COMMIT\n"]
    async with connected(proxy) as client:
        assert await client.ask(b"COMMIT\n") == b"COMMIT\n"


async def test_a_loss_that_was_called_off_does_not_happen(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        proxy.lose_reply(to=b"COMMIT")
        proxy.keep_replies()
        assert await client.ask(b"COMMIT\n") == b"COMMIT\n"
    assert (proxy.lost_replies, echo.lines) == (0, [b"COMMIT\n"])


async def test_bytes_come_in_slices(proxy: FaultProxy) -> None:
    proxy.slice_bytes, proxy.slice_seconds = 1, 0.005
    async with connected(proxy) as client:
        client.writer.write(b"abc\n")
        assert await client.reader.read(100) == b"a"
        assert await client.reader.readline() == b"bc\n"


async def test_nothing_of_a_closed_proxy_goes_on(echo: Echo) -> None:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    before = asyncio.all_tasks()
    async with FaultProxy(*server.sockets[0].getsockname()) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        await Client(reader, writer).ask(b"a\n")
    # The client has not gone yet, so the proxy itself must have ended what served it; the server is told in time.
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(20):
            await reader.read()
    async with asyncio.timeout(20):
        while asyncio.all_tasks() != before:
            await asyncio.sleep(0.01)
    writer.transport.abort()
    server.close()
