"""Serves a page to this computer alone, in a thread."""

import asyncio
import logging
import socket
import threading
from typing import Any

import uvicorn

HOST = "127.0.0.1"
REQUESTS = 100  # at a time


class Server:
    """A running server; a context, which ends it.

    Args:
        app: the ASGI application.
        listener: the socket on which it is asked; it is the server's from now on.
    """

    def __init__(self, app: Any, listener: socket.socket) -> None:
        self.address = f"http://{HOST}:{listener.getsockname()[1]}/"
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="error",
                access_log=False,  # addresses contain the visitors' names
                http="h11",
                ws="none",
                lifespan="off",
                limit_concurrency=REQUESTS,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=1,
            )
        )
        # What ends with the page is not a fault.
        logging.getLogger("uvicorn.error").addFilter(_is_fault)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, daemon=True
        )

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=5)


def _is_fault(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
