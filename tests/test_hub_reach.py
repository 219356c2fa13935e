"""Whether the hub can be reached is known in seconds."""

import socket
import time

import pytest
from helpers import message_of
from huggingface_hub import constants

from fsseg_jax import hub
from fsseg_jax.backbones.pretrained import read_weights
from fsseg_jax.prediction import sharing

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No proxy, and no wish to stay offline."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def at(monkeypatch, address):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    return hub.is_unreachable()


def test_a_server_is_reached_and_where_there_is_none_is_told(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert not at(monkeypatch, address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert at(monkeypatch, address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert at(monkeypatch, address)  # nobody is there any more
    assert at(monkeypatch, "https://name.invalid")  # a name that never exists (RFC 6761)


def test_slow_networks_and_proxies_are_left_to_the_client(monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.2)

    def failing(error, after):
        def fail(*_):
            time.sleep(after)
            raise error

        return fail

    for error, after in ((TimeoutError(), 0), (socket.gaierror("no answer"), 1)):
        with monkeypatch.context() as patch:
            patch.setattr(socket, "create_connection", failing(error, after))
            assert not at(monkeypatch, "https://name.invalid")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert not at(monkeypatch, "https://name.invalid")


def test_without_a_network_the_remedy_comes_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "https://name.invalid")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    told = message_of(read_weights, "timm/vgg16.tv_in1k")
    assert told.startswith("init = timm/vgg16.tv_in1k is neither a file nor in the cache")
    assert told.endswith("give a local weights file (init=FILE, or --config.init=FILE).")
    assert "cannot be reached: check the name" in message_of(sharing.download, "me/model")
    assert time.monotonic() - began < 5
