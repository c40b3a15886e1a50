"""A connection on a transport that only records: what no network does on demand."""

import asyncio

from gateway.wire.connection import Connection
from tests.wire.test_split import Wire

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def start(**limits: int) -> tuple[Connection, Wire, asyncio.Future[None]]:
    """A connection with a request sent."""
    loop = asyncio.get_running_loop()
    wire = Wire()
    connection = Connection(loop, lambda _: None, **{"head_bytes": 1000, "buffer_bytes": 1000, **limits})
    connection.connection_made(wire)
    return connection, wire, connection.send(b"GET / HTTP/1.1\r\n\r\n", b"", bodyless=False, deadline=loop.time() + 5)


async def test_reading_stops_once_and_goes_on_when_all_is_taken() -> None:
    connection, wire, _ = start(buffer_bytes=100)
    connection.data_received(CHUNKED)
    for expected in (0, 1, 1):
        connection.data_received(b"32\r\n" + b"x" * 50 + b"\r\n")
        assert wire.paused == expected
    assert len(connection.take()) == 150
    assert wire.paused == 0


async def test_a_held_back_connection_reads_again_when_it_rests() -> None:
    connection, wire, _ = start(buffer_bytes=10)
    connection.data_received(CHUNKED + b"32\r\n" + b"x" * 50 + b"\r\n")
    assert wire.paused == 1
    connection.data_received(b"0\r\n\r\n")  # a transport may deliver what it had read already
    assert connection.rest()
    assert wire.paused == 0


async def test_framing_that_arrives_apart_is_no_flood_and_wakes_nobody() -> None:
    connection, wire, _ = start(head_bytes=200)
    connection.data_received(CHUNKED)
    for _ in range(1000):
        waiter = connection.more(5)
        connection.data_received(b"1\r\n")
        assert not waiter.done()
        connection.data_received(b"x")
        assert waiter.done()
        connection.data_received(b"\r\n")
        assert connection.take() == b"x"
    assert connection.fault is None
    assert not wire.closing


async def test_bytes_of_an_answer_that_failed_are_not_parsed() -> None:
    connection, wire, head = start()
    connection.data_received(b"nonsense\r\n\r\n")
    fault = connection.fault
    assert head.done()
    assert wire.closing
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    assert connection.fault is fault
    assert not connection.incoming.complete
