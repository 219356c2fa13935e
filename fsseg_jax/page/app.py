"""The page's web application: what its browser part, in `static/`, asks for."""

import copy
import json
import pathlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import numpy as np
from ml_collections import ConfigDict
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from fsseg_jax.errors import UserError
from fsseg_jax.evaluation.report import WAY_COLOURS
from fsseg_jax.page import export, folder, limits
from fsseg_jax.page.guard import Guard
from fsseg_jax.page.segmenting import find
from fsseg_jax.page.session import Session, Sessions
from fsseg_jax.prediction.segmenter import Segmenter

STATIC = pathlib.Path(__file__).parent / "static"
HEADERS = {
    # Nothing is fetched from elsewhere, and no other website shows the page within its own.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # addresses contain the visitor's name
    "Cache-Control": "no-store",  # the browser keeps no images either
}
_BYTES = "application/octet-stream"
KINDS = {"png": "image/png", "jpg": "image/jpeg", "marks": _BYTES, "planes": _BYTES}
GONE = "The page was started again, or not used for long: load it again."


class _Number(IntegerConvertor):
    """The number of an image in an address."""

    regex = "[0-9]{1,9}"  # Python reads no number of thousands of digits


register_url_convertor("number", _Number())


def build(segmenter: Segmenter) -> Starlette:
    """The application for a model. Each visitor has images and classes of their own."""
    config = segmenter.config
    size = config.image_size
    # Compiled before the first visitor waits; the visitors' copies share the result.
    blank = np.zeros((size, size, 3), np.uint8)
    segmenter = copy.copy(segmenter).fit([blank], masks=[np.eye(size, dtype=bool)])
    segmenter.predict(blank, batch_size=1)
    sessions = Sessions(folder.create())

    def own(handler: Callable[[Session, Request], Any]) -> Callable[[Request], Any]:
        """A handler of requests about one visitor's own things."""

        async def handle(request: Request) -> Response:
            name = request.path_params["session"]
            session = sessions.get(name)
            if session is None:
                raise HTTPException(404, GONE)
            try:
                return await handler(session, request)
            except OSError as error:
                if sessions.get(name) is None:  # it has gone meanwhile
                    raise HTTPException(404, GONE) from None
                raise _disk_error(error) from None

        return handle

    async def start(request: Request) -> Response:
        return JSONResponse({"session": sessions.new()})

    async def search(session: Session, request: Request) -> Response:
        found = find(session, segmenter)
        # Before the response begins, so that an error of the request has its status.
        first = await run_in_threadpool(next, found, None)
        return StreamingResponse(_lines(found, first), media_type="application/x-ndjson")

    at = "/sessions/{session}"
    image = f"{at}/images/{{number:number}}"
    routes = [
        Route("/", lambda request: FileResponse(STATIC / "index.html")),
        Route("/about", lambda request: JSONResponse(_about(config))),
        Route("/sessions", start, methods=["POST"]),
        Route(at, own(_state)),
        Route(f"{at}/classes", own(_name), methods=["PUT"]),
        Route(f"{at}/images", own(_upload), methods=["POST"]),
        Route(image, own(_remove), methods=["DELETE"]),
        Route(f"{image}/marks", own(_mark), methods=["PUT"]),
        Route(f"{image}/{{kind}}", own(_file)),
        Route(f"{at}/find", own(search), methods=["POST"]),
        Route(f"{at}/masks.zip", own(_archive)),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    middleware = [Middleware(_Headers), Middleware(Guard, used=folder.used)]
    handlers: Any = {UserError: _told}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


def _about(config: ConfigDict) -> dict[str, Any]:
    """What the page says of the model, and its limits."""
    size = config.image_size
    return {
        "model": f"{config.method} on {config.backbone}, at {size} x {size} pixels",
        "sentence": limits.SENTENCE,
        "bytes": limits.BYTES,
        "files": limits.FILES,
        "name": limits.NAME,
        "colours": WAY_COLOURS,
    }


class _Headers:
    """Middleware that adds `HEADERS` to every answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), x.encode()) for name, x in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await self._app(scope, receive, answer)


class _Passing(FileResponse):
    """An answer whose file goes with it, also if it cannot be sent."""

    async def __call__(self, *request: Any) -> None:
        try:
            await super().__call__(*request)
        finally:
            pathlib.Path(self.path).unlink(missing_ok=True)


def _disk_error(error: OSError) -> UserError:
    return UserError(
        f"The page cannot read or write its files ({error.strerror or error}): make room on "
        "the disk, or load the page again."
    )


async def _told(request: Request, error: Exception) -> Response:
    """The answer to wrong input: its sentence."""
    return PlainTextResponse(str(error), 400)


async def _state(session: Session, request: Request) -> Response:
    return JSONResponse(session.state())


async def _name(session: Session, request: Request) -> Response:
    content = await request.body()
    try:
        names = json.loads(content)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, dict):
        raise UserError("The names of the classes cannot be read: load the page again.")
    await run_in_threadpool(session.name_classes, names)
    return JSONResponse(session.state())


async def _upload(session: Session, request: Request) -> Response:
    upload = folder.create() / f"{secrets.token_hex(8)}.upload"
    try:
        with upload.open("xb") as file:
            async for piece in request.stream():
                file.write(piece)
        name = request.query_params.get("name", "")
        picture = await run_in_threadpool(session.add, upload, name)
    finally:
        upload.unlink(missing_ok=True)
    return JSONResponse(session.describe(picture))


async def _remove(session: Session, request: Request) -> Response:
    await run_in_threadpool(session.remove, request.path_params["number"])
    return Response(status_code=204)


async def _mark(session: Session, request: Request) -> Response:
    rest, boxed = (request.query_params.get(name) == "true" for name in ("rest", "boxed"))
    content, number = await request.body(), request.path_params["number"]
    picture = await run_in_threadpool(session.mark, number, content, rest, boxed)
    return JSONResponse(session.describe(picture))


async def _file(session: Session, request: Request) -> Response:
    """The picture, the small one, the marks or the prediction of an image."""
    kind, number = request.path_params["kind"], request.path_params["number"]
    session.picture(number)
    if kind not in KINDS:
        raise HTTPException(404, "The image has none.")
    try:  # whole, as it may be removed or replaced at any time
        content = await run_in_threadpool(session.file(number, kind).read_bytes)
    except FileNotFoundError:
        raise HTTPException(404, "The image has none.") from None
    packed = {} if kind in ("png", "jpg") else {"Content-Encoding": "gzip"}
    return Response(content, media_type=KINDS[kind], headers=packed)


async def _archive(session: Session, request: Request) -> Response:
    given = request.query_params.get("threshold")
    try:
        threshold = None if given is None else float(given)
        good = threshold is None or 0 <= threshold <= 1  # not NaN
    except ValueError:
        good = False
    if not good:
        raise UserError("The threshold is not a number in 0..1: load the page again.")
    path = await run_in_threadpool(export.archive, session, threshold)
    return _Passing(path, filename="masks.zip")


async def _lines(found: Iterator[Any], first: Any) -> AsyncIterator[str]:
    """Each thing as a line of JSON; what goes wrong after the first is a line as well."""
    try:
        yield json.dumps(first) + "\n"
        try:
            async for thing in iterate_in_threadpool(found):
                yield json.dumps(thing) + "\n"
        except UserError as error:
            yield json.dumps({"error": str(error)}) + "\n"
        except OSError as error:
            yield json.dumps({"error": str(_disk_error(error))}) + "\n"
    finally:  # a visitor may have gone
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(found.close)  # pyright: ignore[reportAttributeAccessIssue]
