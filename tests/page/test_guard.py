"""Other websites cannot use the page, and it keeps no more than it should."""

import asyncio

import pytest

pytest.importorskip("starlette")

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fsseg_jax.page import guard, limits
from fsseg_jax.page.guard import Guard

OWN = {"host": "localhost:7860"}


def answer(app, headers, scope=(), messages=()):
    """What is sent to a client that sends these headers and messages."""
    scope = {"type": "http", "method": "GET", "path": "/", **dict(scope)}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers]
    waiting, sent = [*messages, {"type": "http.disconnect"}], []

    async def receive():
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


async def application(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"secret"})


def status_of(*headers, **scope):
    sent = answer(Guard(application, lambda: 0), headers, scope)
    assert (sent[0]["status"] == 200) == any(x.get("body") == b"secret" for x in sent)
    return sent[0]["status"]


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]"])
@pytest.mark.parametrize("port", ["", ":7860", ":1", ":65535"])
def test_this_computer_is_answered_at_any_port(name, port):
    host = ("host", name + port)
    assert status_of(host) == 200
    assert status_of(host, ("origin", f"http://{name}{port}")) == 200
    for site in ("same-origin", "none"):
        assert status_of(host, ("sec-fetch-site", site)) == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "example.com",
        "example.com:7860",
        "localhost.example.com",
        "127.0.0.1.example.com",
        "example.com@localhost",
        "localhost@example.com",
        "localhost:x",
        "localhost:99999",
        "localhost/",
        "localhost#",
        "localhost, example.com",
        "0.0.0.0",
        "127.0.0.2",
        "[::1",
        "::1",
        "[::ffff:127.0.0.1]",
        "localhost\t",
    ],
)
def test_other_hosts_are_refused(host):
    assert status_of(("host", host)) == 403
    assert status_of(("host", host), ("origin", f"http://{host}")) == 403


def test_one_host_is_named():
    assert status_of() == 403
    assert status_of(("host", "localhost"), ("host", "example.com")) == 403
    assert status_of(("host", "localhost"), ("host", "localhost")) == 403


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "http://example.com",
        "http://localhost",
        "http://localhost:7861",
        "http://127.0.0.1:7860",
        "http://localhost:7860.example.com",
        "http://x@localhost:7860",
        "http://localhost:7860/",
        "localhost:7860",
        "http://[",
    ],
)
def test_other_origins_are_refused(origin):
    host = ("host", "localhost:7860")
    assert status_of(host, ("origin", origin)) == 403
    # The other header does not help.
    assert status_of(host, ("origin", origin), ("sec-fetch-site", "same-origin")) == 403
    own = ("origin", "http://localhost:7860")
    assert status_of(host, own) == 200
    assert status_of(host, own, ("origin", origin)) == 403


def test_other_sites_may_link_to_the_page_and_nothing_else():
    host, site = ("host", "localhost:7860"), ("sec-fetch-site", "cross-site")
    link = (("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document"))
    assert status_of(host, site, *link) == 200
    assert status_of(host, site) == 403
    assert status_of(host, ("sec-fetch-site", "same-site")) == 403
    assert status_of(host, site, *link, method="POST") == 403
    assert status_of(host, site, *link, path="/gradio_api/upload") == 403
    assert status_of(host, site, link[0], ("sec-fetch-dest", "iframe")) == 403


def test_websockets_are_guarded_too():
    closed = [{"type": "websocket.close"}]
    foreign = [("host", "localhost"), ("origin", "http://example.com")]
    app = Guard(application, lambda: 0)
    assert answer(app, foreign, {"type": "websocket"}) == closed
    assert answer(app, [("host", "example.com")], {"type": "websocket"}) == closed
    own = [("host", "localhost"), ("origin", "http://localhost")]
    assert answer(app, own, {"type": "websocket"}) != closed


# ----------------------------------------------------------------------------- sizes

OWN_HOST = [("host", "localhost")]
UPLOAD = {"method": "POST", "path": "/sessions/x/images"}


async def reader(scope, receive, send):
    """Reads a whole request and says how long it is."""
    length, more = 0, True
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            length, more = length + len(message["body"]), message["more_body"]
    except HTTPException as error:
        length = error.detail if error.status_code == 413 else "another status"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length)})


def chunks(*lengths):
    return [{"type": "http.request", "body": b"x" * n, "more_body": True} for n in lengths] + [
        {"type": "http.request", "body": b"", "more_body": False}
    ]


def test_uploads_end_when_the_page_is_full(monkeypatch):
    monkeypatch.setattr(guard, "TOTAL", 100)
    used = 30
    app = Guard(reader, lambda: used)
    assert answer(app, OWN_HOST, UPLOAD, chunks(40, 30))[-1]["body"] == "70"
    assert answer(app, OWN_HOST, UPLOAD, chunks(40, 31))[-1]["body"] == guard.FULL
    assert answer(app, OWN_HOST, UPLOAD, chunks(40))[-1]["body"] == "40"  # nothing was kept
    used = 101
    assert answer(app, OWN_HOST, UPLOAD, chunks(1))[-1]["body"] == guard.FULL


def test_uploads_at_the_same_time_fill_the_page_together(monkeypatch):
    monkeypatch.setattr(guard, "TOTAL", 100)
    second = []

    async def first(scope, receive, send):
        if not second:  # while this is arriving, there is another one
            second.append(None)
            await receive()
            other = asyncio.to_thread(answer, app, OWN_HOST, UPLOAD, chunks(60))
            second.extend(await other)
        await reader(scope, receive, send)

    app = Guard(first, lambda: 0)
    answer(app, OWN_HOST, UPLOAD, chunks(50, 0))
    assert second[-1]["body"] == guard.FULL


def test_a_file_is_of_a_size(monkeypatch):
    monkeypatch.setattr(limits, "BYTES", 100)
    app = Guard(reader, lambda: 0)
    assert answer(app, OWN_HOST, UPLOAD, chunks(60, 40))[-1]["body"] == "100"
    assert "too large" in answer(app, OWN_HOST, UPLOAD, chunks(60, 41))[-1]["body"]


@pytest.mark.parametrize(("count", "read"), [(5, 6), (100, 41)])
def test_what_is_too_long_is_read_to_its_end_but_not_without_end(monkeypatch, count, read):
    monkeypatch.setattr(guard, "MESSAGE", 100)
    monkeypatch.setattr(limits, "BYTES", 1000)
    waiting = chunks(*[50] * count)
    scope = {"type": "http", "method": "PUT", "path": "/", "headers": [(b"host", b"localhost")]}
    left = [*waiting]

    async def receive():
        return left.pop(0)

    async def send(message):
        pass

    asyncio.run(Guard(reader, lambda: 0)(scope, receive, send))
    assert len(waiting) - len(left) == read


def test_other_requests_are_short(monkeypatch):
    monkeypatch.setattr(guard, "MESSAGE", 100)
    app = Guard(reader, lambda: 10**20)
    assert answer(app, OWN_HOST, messages=chunks(60, 40))[-1]["body"] == "100"
    assert "too long" in answer(app, OWN_HOST, messages=chunks(60, 41))[-1]["body"]
    other = {"method": "PUT", "path": "/sessions/x/images/1/marks"}
    assert "too long" in answer(app, OWN_HOST, other, chunks(60, 41))[-1]["body"]


def test_an_upload_that_ends_early_is_not_answered(caplog):
    assert answer(Guard(reader, lambda: 0), OWN_HOST, UPLOAD, chunks(60)[:1]) == []
    assert not caplog.records


def test_an_error_of_the_page_is_answered_with_one_sentence(caplog):
    async def broken(scope, receive, send):
        raise KeyError(99)

    start, body = answer(Guard(broken, lambda: 0), OWN_HOST)
    assert start["status"] == 500
    assert body["body"] == b"The page cannot answer this."
    assert "99" in caplog.text
