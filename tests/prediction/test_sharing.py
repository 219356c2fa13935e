"""A model is loaded as it was saved: from a run, a folder, the hub, or fresh from a config."""

import base64
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import fsseg_jax
from fsseg_jax.config import config_file, config_names, load_config
from fsseg_jax.errors import UserError
from fsseg_jax.models import create_model, init_variables
from fsseg_jax.prediction import sharing
from fsseg_jax.training.checkpoints import BEST, LAST, Checkpoints
from fsseg_jax.training.state import TrainState


def make_config(method="panet", **fields):
    config = load_config(config_file(f"shapes:{method}"))
    config.image_size = 32
    if method != "panet":
        config.model.width = 8
    if method == "ltafnet":
        config.model.refinement_width = 4
    config.update_from_flattened_dict(fields)
    return config


def draw_variables(config, seed=0):
    rng = np.random.default_rng(seed)
    model = create_model(config)
    shapes = jax.eval_shape(
        lambda: init_variables(model, jax.random.key(0), config.ways, config.shots)
    )
    return jax.tree.map(lambda x: rng.normal(0.5, 0.2, x.shape).astype(np.float32), shapes)


def assert_equal(tree, other):
    tree, other = flatten_dict(tree), flatten_dict(other)
    assert tree.keys() == other.keys()
    for name, array in tree.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a model of two shots, and its configuration and variables."""
    folder = tmp_path_factory.mktemp("saved") / "canet"
    config = make_config("canet", shots=2)
    variables = draw_variables(config)
    sharing.save(folder, config, variables, "canet")
    return folder, config, variables


# ----------------------------------------------------------------------------- a folder


@pytest.mark.parametrize("method", ["panet", "canet", "sst", "ltafnet", "mfnet"])
def test_what_is_saved_is_loaded(tmp_path, method):
    config = make_config(method, ways=2, shots=2, **{"eval.scales": (0.7, 1.0)})
    variables = draw_variables(config)
    sharing.save(tmp_path / "model", config, variables)
    segmenter = fsseg_jax.load(tmp_path / "model")
    assert segmenter.config.to_dict() == config.to_dict()
    assert segmenter.model == create_model(config).clone(freeze_backbone=False)
    assert_equal(segmenter.variables, variables)
    segmenter.save_pretrained(tmp_path / "again")
    for name in (sharing.CONFIG, sharing.WEIGHTS):
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("model", "again"))
        assert first == second


def test_all_devices_are_used_unless_told_otherwise(saved):
    assert fsseg_jax.load(saved[0]).mesh.size == len(jax.devices()) > 2
    assert fsseg_jax.load(str(saved[0]), devices=2).mesh.size == 2


def test_settings_change_the_configuration(saved):
    settings = {"image_size": 48, "eval.fit": "letterbox", "model.refinements": 2}
    segmenter = fsseg_jax.load(saved[0], **settings)
    assert segmenter.config.image_size == 48
    assert segmenter.config.eval.fit == "letterbox"
    assert segmenter.model.refinements == 2
    assert_equal(segmenter.variables, saved[2])


def test_a_model_is_replaced_whole_or_not_at_all(saved, tmp_path, monkeypatch):
    _, config, variables = saved
    sharing.save(tmp_path, config, variables)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"README.md", "config.json", "model.safetensors"}
    write, written = pathlib.Path.write_bytes, []

    def full(path, content):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    other = jax.tree.map(lambda x: x + 1, variables)
    with pytest.raises(UserError, match=r"cannot be written to \(.*No space left.*choose another"):
        sharing.save(tmp_path, config, other)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    sharing.save(tmp_path, config, other)
    assert_equal(fsseg_jax.load(tmp_path).variables, other)


def test_a_file_is_no_place_for_a_model(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be written to"):
        fsseg_jax.load(saved[0]).save_pretrained(tmp_path / "file")


def test_card_says_what_the_model_is(saved, tmp_path):
    _, config, variables = saved
    card = (saved[0] / "README.md").read_text()
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    for part in ("# canet\n", f"canet on small, {count:,} parameters", "squares of 32", "2-shot"):
        assert part in card
    assert 'fsseg_jax.load("owner/canet")' in card
    assert card.startswith("---\nlibrary_name: fsseg_jax\n")
    sharing.save(tmp_path, config, variables, "me/other")
    card = (tmp_path / "README.md").read_text()
    assert "# other\n" in card
    assert 'fsseg_jax.load("me/other")' in card


def broken(saved, tmp_path, name, change):
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in saved[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    change(folder / name)
    return folder


def edited(**fields):
    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("model.safetensors", os.remove, r"model\.safetensors cannot be read \(.*save the model"),
        (
            "model.safetensors",
            lambda path: path.write_bytes(path.read_bytes()[:-10]),
            r"model\.safetensors cannot be read \(",
        ),
        ("config.json", lambda path: path.write_text("{"), "is not a configuration of"),
        ("config.json", lambda path: path.write_text("[]"), "is not a configuration of"),
        (
            "config.json",
            lambda path: path.write_text('{"model_type": "vit"}'),
            r"config\.json is not a configuration of fsseg_jax \(KeyError\('fsseg_jax'\)\)",
        ),
        ("config.json", edited(fsseg_jax=2), r"config\.json has version 2 of the format, but"),
        ("config.json", edited(method="unet"), "method = 'unet': choose one of panet, canet"),
        ("config.json", edited(image_size="large"), "is not a configuration of"),
        ("config.json", edited(image_size=3), "image_size = 3: it must be at least 32"),
        ("config.json", edited(shots=1), r"model\.safetensors does not fit .*config\.json: "),
    ],
)
def test_broken_models_are_told(saved, tmp_path, name, change, sentence):
    folder = broken(saved, tmp_path, name, change)
    with pytest.raises(UserError, match=sentence):
        fsseg_jax.load(folder)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"image_siez": 64}, "did you mean --config.image_size"),
        ({"image_size": "large"}, "image_size"),
        ({"eval.fit": "crop"}, "eval.fit = 'crop': choose stretch or letterbox"),
        ({"shots": 5}, "shots = 5: the model was trained for 2, which cannot change"),
        ({"ways": 3}, "ways = 3: the model was trained for 1"),
        ({"devices": 1000}, "devices = 1000, but there are"),
        ({"platform": "abacus"}, "platform = 'abacus': choose cpu, gpu, tpu"),
        ({"model.width": 16}, r"model\.safetensors does not fit .*do not change its settings"),
        ({"checkpoint": "first"}, "checkpoint = 'first': choose best or last"),
    ],
)
def test_wrong_settings_are_told(saved, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        fsseg_jax.load(saved[0], **settings)


# ----------------------------------------------------------------------------- a run


def save_run(workdir, config, **checkpoints):
    for which, variables in checkpoints.items():
        state = TrainState(step=np.int32(7), variables=variables, optimizer={}, rows=None)
        Checkpoints(workdir).save(which, state, config)
    return workdir


def test_a_run_gives_its_best_or_last_checkpoint(tmp_path):
    config = make_config("mfnet", ways=2)
    best, last = draw_variables(config, seed=1), draw_variables(config, seed=2)
    run = save_run(tmp_path / "run", config, **{BEST: best, LAST: last})
    segmenter = fsseg_jax.load(run)
    assert segmenter.config.to_dict() == config.to_dict()
    assert_equal(segmenter.variables, best)
    segmenter = fsseg_jax.load(run, checkpoint="last", image_size=64)
    assert_equal(segmenter.variables, last)
    assert segmenter.config.image_size == 64
    segmenter.save_pretrained(tmp_path / "saved")
    assert_equal(fsseg_jax.load(tmp_path / "saved").variables, last)
    with pytest.raises(UserError, match="ways = 3: the model was trained for 2"):
        fsseg_jax.load(run, ways=3)
    with pytest.raises(UserError, match="does not fit the model of the config"):
        fsseg_jax.load(run, **{"model.width": 16})


def test_a_run_without_a_best_checkpoint_gives_its_last(tmp_path):
    config = make_config()
    variables = draw_variables(config)
    run = save_run(tmp_path / "run", config, **{LAST: variables})
    assert_equal(fsseg_jax.load(run).variables, variables)


# ----------------------------------------------------------------------------- a configuration


def test_an_untrained_model_is_announced_where_it_is_loaded(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(pathlib.Path(config_file("shapes").rsplit(":", 1)[0]).read_text())
    for name in ("shapes", path):
        with pytest.warns(UserWarning, match="panet is not trained: its backbone has") as caught:
            segmenter = fsseg_jax.load(name, image_size=40, devices=1)
        assert [w.filename for w in caught if "not trained" in str(w.message)] == [__file__]
        assert segmenter.config.image_size == 40
        assert segmenter.config.backbone == "small"
        config = load_config(config_file("shapes"))
        model = create_model(config)
        assert_equal(segmenter.variables, init_variables(model, jax.random.key(0), 1, 1))
    with pytest.warns(UserWarning, match="this canet is not trained"):
        segmenter = fsseg_jax.load("shapes:canet", **{"shots": 2, "model.width": 8, "devices": 1})
    assert segmenter.config.shots == 2
    assert any("attention" in name for name in segmenter.variables["params"])


def test_panet_on_a_pretrained_backbone_needs_no_training(monkeypatch):
    monkeypatch.setattr(
        "fsseg_jax.models.load_pretrained",
        lambda init, variables: jax.tree.map(lambda x: np.full(x.shape, 0.5), variables),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter = fsseg_jax.load("shapes", init="weights.safetensors", devices=1)
    assert {float(x.max()) for x in jax.tree.leaves(segmenter.variables)} == {0.5}
    with pytest.warns(UserWarning, match="this sst is not trained: aspp, block, .* random weights"):
        fsseg_jax.load("shapes:sst", init="weights.safetensors", devices=1)


def test_wrong_names_are_told(tmp_path):
    with pytest.raises(UserError, match="model = 'nothing': there is no such folder") as caught:
        fsseg_jax.load("nothing")
    for name in config_names():
        assert name in str(caught.value)
    with pytest.raises(UserError, match="model = 'a/b/c': there is no such folder"):
        fsseg_jax.load("a/b/c")
    with pytest.raises(UserError, match=r"missing\.py: there is no such file"):
        fsseg_jax.load(tmp_path / "missing.py")
    with pytest.raises(
        UserError, match=rf"{tmp_path} holds neither checkpoints nor a config\.json"
    ):
        fsseg_jax.load(tmp_path)


# ----------------------------------------------------------------------------- the hub

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
    command = [saved[0], folder / "loaded", folder / "results.json"]
    try:
        done = subprocess.run(
            [sys.executable, "-c", SESSION, *map(str, command)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
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
    config, _, variables = sharing.read(loaded)
    assert config.image_size == 48
    assert_equal(variables, saved[2])
    files = server.repositories["me/tiny"]
    assert files.keys() == {"README.md", "config.json", "model.safetensors"}
    assert files["model.safetensors"] == (saved[0] / "model.safetensors").read_bytes()
    assert 'fsseg_jax.load("me/tiny")' in files["README.md"].decode()
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
