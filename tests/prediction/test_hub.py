"""A model is pushed to the hub and loaded from there, by the hub's own client."""

import base64
import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from commands import run
from small_models import assert_equal

from fsseg_jax.prediction import sharing

TOKEN = "hf_of_the_test"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its own client needs to create, fill and download repositories."""

    repositories: dict  # owner/name: files by their names
    large: dict  # contents of large files by their hashes
    log: list

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Says nothing."""

    def answer(self, content=b"", status=200, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content_Type"] = "application/json"
        self.send_response(status)
        for name, value in {"Content_Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_any(self):
        size = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = self.unchunked() if chunked else self.rfile.read(size)
        path = self.path.split("?")[0]
        self.log.append(f"{self.command} {path}")
        _, *parts = path.split("/")
        changes = self.command != "GET" and self.command != "HEAD" and parts[0] != "lfs"
        if changes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials."}, 401)
        match parts:
            case ["api", "repos", "create"]:
                given = json.loads(body)
                name = f"{given['organization']}/{given['name']}"
                status = 409 if name in self.repositories else 200
                self.repositories.setdefault(name, {})
                return self.answer({"url": f"{self.address}/{name}"}, status)
            case ["api", "validate-yaml"]:
                return self.answer({"warnings": [], "errors": []})
            case ["api", "models", owner, name, "preupload", "main"]:
                files = [
                    {"path": file["path"], "uploadMode": mode(file), "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self.answer({"files": files})
            case [owner, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                objects = [
                    {**given, "actions": {"upload": {"href": f"{self.address}/lfs/{given['oid']}"}}}
                    for given in json.loads(body)["objects"]
                ]
                return self.answer({"transfer": "basic", "objects": objects})
            case ["lfs", oid]:
                assert hashlib.sha256(body).hexdigest() == oid
                self.large[oid] = body
                return self.answer()
            case ["api", "models", owner, name, "commit", "main"]:
                files = self.repositories[f"{owner}/{name}"]
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    if line["key"] == "lfsFile":
                        files[value["path"]] = self.large[value["oid"]]
                address = f"{self.address}/{owner}/{name}/commit/{commit(files)}"
                return self.answer({"commitUrl": address, "commitOid": commit(files)})
            case ["api", "models", owner, name, *rest] if f"{owner}/{name}" in self.repositories:
                files = self.repositories[f"{owner}/{name}"]
                if rest[:1] == ["tree"]:
                    entries = [
                        {"type": "file", "path": path, "size": len(x), "oid": blob(x)}
                        for path, x in files.items()
                    ]
                    return self.answer(entries)
                siblings = [{"rfilename": path} for path in files]
                facts = {"id": f"{owner}/{name}", "sha": commit(files), "siblings": siblings}
                return self.answer(facts)
            case [owner, name, "resolve", _, file] if f"{owner}/{name}" in self.repositories:
                files = self.repositories[f"{owner}/{name}"]
                headers = {"X_Repo_Commit": commit(files), "ETag": f'"{blob(files[file])}"'}
                return self.answer(files[file], **headers)
            case ["stop"]:
                self.answer()
                threading.Thread(target=self.end).start()
                return None
        missing = {"X_Error_Code": "RepoNotFound", "X_Error_Message": "Repository not found"}
        return self.answer({"error": "Repository not found"}, 404, **missing)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def end(self):
        self.server.shutdown()
        self.server.server_close()

    def unchunked(self):
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


def mode(file):
    return "lfs" if file["path"].endswith(".safetensors") else "regular"


def blob(content):
    return hashlib.sha1(content).hexdigest()


def commit(files):
    return blob(repr(sorted((name, blob(content)) for name, content in files.items())).encode())


# What somebody does who shares a model, and somebody else who has no login, and later no network.
SESSION = """
import json, os, sys, urllib.request
import fsseg_jax
from fsseg_jax.errors import UserError

def error_of(call, *arguments):
    try:
        call(*arguments)
    except UserError as error:
        return str(error)

model, loaded, results = sys.argv[1:]
segmenter = fsseg_jax.load(model, devices=1)
told = {"url": segmenter.push_to_hub("me/tiny")}
fsseg_jax.load("me/tiny", image_size=48, devices=1).save_pretrained(loaded)
told["pushed again"] = segmenter.push_to_hub("me/tiny", private=True)
told["missing"] = error_of(fsseg_jax.load, "me/missing")
told["foreign"] = error_of(fsseg_jax.load, "me/foreign")
told["no name"] = error_of(segmenter.push_to_hub, "me/a b")
del os.environ["HF_TOKEN"]
told["no login"] = error_of(segmenter.push_to_hub, "me/other")
urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/stop").read()
told["kept"] = fsseg_jax.load("me/tiny", devices=1).config.image_size
told["no network"] = error_of(fsseg_jax.load, "me/missing")
told["no network to push"] = error_of(segmenter.push_to_hub, "me/tiny")
json.dump(told, open(results, "w"))
"""


@pytest.fixture(scope="module")
def hub(saved, tmp_path_factory):
    """What the session was told, what it loaded, and the server with what it holds."""
    folder = tmp_path_factory.mktemp("hub")
    foreign = {"config.json": b'{"model_type": "vit"}', "model.safetensors": b""}
    contents = {"repositories": {"me/foreign": foreign}, "large": {}, "log": []}
    handler = type("Handler", (Hub,), contents)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",  # whose client speaks to a store of its own
        "NO_PROXY": "127.0.0.1",
    }
    places = (saved[0], folder / "loaded", folder / "results.json")
    try:
        run(sys.executable, "-c", SESSION, *places, env=environment)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    told = json.loads((folder / "results.json").read_text())
    return told, folder / "loaded", handler


def test_a_model_that_is_pushed_to_the_hub_is_loaded_from_there(hub, saved):
    told, loaded, server = hub
    assert told["url"] == told["pushed again"]
    assert told["url"].endswith("/me/tiny")
    config, _, variables, *_ = sharing.read(loaded)
    assert config.image_size == 48
    assert_equal(variables, saved[2])
    files = server.repositories["me/tiny"]
    assert files.keys() == {"README.md", "config.json", "model.safetensors"}
    assert files["model.safetensors"] == (saved[0] / "model.safetensors").read_bytes()
    assert 'fsseg_jax.load("hf://me/tiny")' in files["README.md"].decode()
    downloaded = [line for line in server.log if "/resolve/" in line]
    assert not [line for line in downloaded if "README" in line]
    assert told["kept"] == 32  # without a network, from the hub's own cache


def test_what_the_hub_refuses_is_told(hub):
    told, *_ = hub
    for name in ("missing", "no network"):
        assert told[name].startswith("model = me/missing is neither a folder nor a configuration")
        assert told[name].endswith("check the name and the network.")
    assert "is not a configuration of fsseg_jax" in told["foreign"]
    for name, repository in (
        ("no name", "me/a b"),
        ("no login", "me/other"),
        ("no network to push", "me/tiny"),
    ):
        assert told[name].startswith(f"{repository} cannot be uploaded to the Hugging Face hub (")
        assert "log in with `hf auth login`" in told[name]
