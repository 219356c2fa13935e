"""What a page on this computer lets in: its own requests, up to a size.

Any website that is open in the user's browser can send requests to this computer, and a name whose
address changes to 127.0.0.1 makes it read the answers. Browsers tell both in the request's headers.
"""

import logging
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fsseg_jax.page import limits

HOSTS = ("localhost", "127.0.0.1", "::1")  # with any port: ssh -L may use another one
TOTAL = 4 * 10**9  # bytes of uploads and results that a page keeps
MESSAGE = 4 * 10**6  # bytes of a request that uploads nothing
UPLOADS = "/images"  # ends the path of a request that uploads an image
FULL = (
    f"The page's uploads and results have reached their maximum allowed size of {TOTAL / 1e9:g} "
    "GB: end the page (Ctrl-C) and start it again."
)
logger = logging.getLogger(__name__)


class Guard:
    """Middleware that refuses requests of other websites, and uploads when the page is full.

    Args:
        app: the ASGI application of the page.
        used: counts the bytes that the page keeps.
    """

    def __init__(self, app: ASGIApp, used: Callable[[], int]) -> None:
        self._app = app
        self._measure = used
        self._uploads = 0  # that are arriving
        self._used = 0  # bytes, with all that has arrived since there was no upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        sentence = refusal(Headers(scope=scope), scope)
        if not sentence:
            await self._limited(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # which servers answer with 403
        else:
            await PlainTextResponse(sentence, 403)(scope, receive, send)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the application read no more of the request's body than it should.

        What ends the reading is an HTTPException, which the application answers. The rest of the
        body is read first, up to a size, since browsers hear no answer while they are sending.
        """
        upload = scope.get("method") == "POST" and scope["path"].endswith(UPLOADS)
        most = limits.BYTES if upload else MESSAGE
        length, answered = 0, False

        async def answer(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        async def limited() -> Message:
            nonlocal length
            message = await receive()
            length += (size := len(message.get("body", b"")))
            self._used += size * upload
            if length > most or (upload and self._used > TOTAL):
                sentence = _too_long(upload) if length > most else FULL
                while message.get("more_body", False) and length <= 2 * limits.BYTES:
                    message = await receive()
                    length += len(message.get("body", b""))
                raise HTTPException(413, sentence)
            return message

        if upload and not self._uploads:
            self._used = self._measure()
        self._uploads += upload
        try:
            await self._app(scope, limited, answer)
        except ClientDisconnect:  # nobody waits for an answer
            pass
        except Exception:
            if answered:
                raise
            logger.exception("%s could not be answered", scope["path"])
            await PlainTextResponse("The page cannot answer this.", 500)(scope, receive, send)
        finally:
            self._uploads -= upload


def _too_long(upload: bool) -> str:
    if not upload:
        return "The request is too long."
    return f"The file is too large: the page takes up to {limits.BYTES // 10**6} MB."


def refusal(headers: Headers, scope: Scope) -> str:
    """Why a request is not one of the page's own; empty if it is."""
    hosts, origins = headers.getlist("host"), headers.getlist("origin")
    if len(hosts) != 1 or _name(hosts[0]) not in HOSTS:
        return "The page answers to localhost, 127.0.0.1 and [::1] alone: open it at one of them."
    if origins:
        own = all(origin.partition("://")[2] == hosts[0] for origin in origins)
    else:  # a browser of today tells where it comes from; other programs do not
        own = headers.get("sec-fetch-site", "none") in ("same-origin", "none")
        own = own or _is_link(headers, scope)
    return "" if own else "The page answers to itself alone, not to other websites."


def _name(host: str) -> str | None:
    """The name in a Host header, without the port; None if there is none."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018  raises ValueError if it is none
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None


def _is_link(headers: Headers, scope: Scope) -> bool:
    """Whether the user follows a link to the page, as from a terminal that is itself a website."""
    kind = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
    return kind == ("navigate", "document") and scope["method"] == "GET" and scope["path"] == "/"
