"""Workers of a Ray cluster write what one process writes, whoever is killed."""

import functools
import os
import signal
import socket
import subprocess
import sys

import pytest
from commands import wait_for
from helpers import message_of
from several import assert_same_files, command, lines_of, make_whole

from fsseg_jax.prediction.cluster import TRIES, Chunk, Deck, segment_on_cluster
from fsseg_jax.prediction.output import Query

QUERIES = [Query(f"/{n}.jpg", f"{n}.jpg", 1, 1) for n in range(5)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    pytest.importorskip("ray")  # before a minute's work
    return make_whole(tmp_path_factory.mktemp("several"))


@pytest.fixture
def cluster():
    """A cluster of three nodes, as processes on this machine, without the driver."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def driver(whole, out, log, cluster):
    words = command(whole, out, f"--ray={cluster.address}", "--workers=3")
    return subprocess.Popen(words, stdout=log.open("a"), stderr=subprocess.STDOUT)


def test_a_node_and_the_driver_are_killed_and_the_files_are_those_of_one_process(
    whole, tmp_path, cluster
):
    out, log = tmp_path / "out", tmp_path / "log"

    def begun(process, lines):
        assert process.poll() is None, log.read_text()
        return sum(map(lines_of, out.glob("journal-*"))) >= lines

    process = driver(whole, out, log, cluster)
    try:
        wait_for(functools.partial(begun, process, 1), seconds=200)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done = sum(map(lines_of, out.glob("journal-*")))
        assert not (out / "predictions.json").exists()

        process = driver(whole, out, log, cluster)
        node = cluster.worker_nodes.copy().pop()
        wait_for(functools.partial(begun, process, 1), seconds=200)
        cluster.remove_node(node, allow_graceful=False)
        assert process.wait(timeout=300) == 1, log.read_text()  # one image cannot be read
    finally:
        process.kill()
    assert done >= 1
    assert_same_files(whole, out)


def test_wrong_options_are_told_before_anything_starts(run, folders, monkeypatch):
    assert "--ray starts workers by itself" in message_of(
        run, "--ray=auto", "--config.distributed=True"
    )
    assert "--workers = 2: it is at least 1, and for --ray" in message_of(run, "--workers=2")
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    assert "pip install 'fsseg_jax[ray]'" in message_of(run, "--ray=auto")
    assert "--save = mask: choose masks or overlays" in message_of(run, "--save=mask")
    truth = f"--truth={folders / 'query'}"
    assert "--truth compares masks" in message_of(run, truth, "--save=overlays")
    assert not run.segmented


def test_a_cluster_that_is_not_there_is_told():
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"  # nobody listens there
        message = message_of(segment_on_cluster, address, None, None, None, QUERIES)
    assert f"--ray = {address}: nobody answers" in message
    assert "ray start --head" in message


def test_a_chunk_that_kills_workers_is_dealt_alone_and_then_its_images_until_one_is_to_blame():
    deck, bad, dealt = Deck(QUERIES, 3), QUERIES[1], []
    while deck:
        chunk = deck.deal([])
        dealt.append(chunk)
        if bad in chunk.queries:
            deck.lost(chunk, "killed")
    done = [query for chunk in dealt if bad not in chunk.queries for query in chunk.queries]
    assert sorted(done) == [query for query in QUERIES if query != bad]
    assert [*deck.skipped] == [bad.name]
    assert f"/1.jpg ended {TRIES} workers (killed)" in deck.skipped[bad.name]


def test_a_worker_has_two_chunks_but_nothing_beside_one_that_may_kill_it():
    deck = Deck(QUERIES, 1)
    first, second = deck.deal([]), deck.deal([Chunk(QUERIES[:1])])
    assert (first.queries, second.queries) == (((QUERIES[0]),), (QUERIES[1],))
    assert deck.deal([first, second]) is None
    deck.lost(first, "killed")
    assert deck.deal([second]).queries == (QUERIES[2],)  # not what may kill this worker as well
    again = deck.deal([])
    assert again == first._replace(tries=1)
    assert deck.deal([again]) is None
