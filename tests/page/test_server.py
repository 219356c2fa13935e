"""A page ends quietly, whatever is in work."""

import asyncio
import logging
import logging.handlers
import queue
import socket
import threading

import pytest

pytest.importorskip("uvicorn")
from fsseg_jax.page.server import HOST, Server


def test_what_ends_with_the_page_is_no_fault():
    begun, told = threading.Event(), queue.SimpleQueue()

    async def slow(scope, receive, send):
        begun.set()
        await asyncio.sleep(60)

    listener = socket.create_server((HOST, 0))
    handler = logging.handlers.QueueHandler(told)
    with socket.create_connection(listener.getsockname()) as visitor:
        server = Server(slow, listener)
        logging.getLogger("uvicorn.error").addHandler(handler)
        with server:
            visitor.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert begun.wait(20)
    logging.getLogger("uvicorn.error").removeHandler(handler)
    while not told.empty():
        assert "Traceback" not in told.get().getMessage()
