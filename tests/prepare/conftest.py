"""Archives with images and labels of noise, and a server that has them."""

import threading

import numpy as np
import pytest
from archives import (
    LISTS,
    OWN,
    SBD_LISTS,
    SBDS,
    VOC_LISTS,
    Originals,
    Server,
    Site,
    jpeg,
    mat,
    png,
    write_tar,
)

from fsseg_jax import prepare


@pytest.fixture(scope="module")
def originals():
    rng = np.random.default_rng(0)
    names = sorted({*OWN, *SBDS})
    labels, objects = {}, {}
    voc, sbd = {"VOCdevkit/VOC2012/Annotations/2007_000003.xml": b"<annotation/>"}, {}
    for split, listed in VOC_LISTS.items():
        voc[f"VOCdevkit/VOC2012/{LISTS}/{split}.txt"] = "\n".join([*listed, ""]).encode()
        voc[f"VOCdevkit/VOC2012/ImageSets/Main/{split}.txt"] = b"2007_000027\n"
    for split, listed in SBD_LISTS.items():
        sbd[f"benchmark_RELEASE/dataset/{split}.txt"] = "\n".join([*listed, ""]).encode()
    sbd["benchmark_RELEASE/README.txt"] = b"read me"
    for name in [*names, "2007_000027"]:  # the last one is in no list
        height, width = rng.integers(30, 50, 2)
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        voc[f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg"] = jpeg(image)
        sbd[f"benchmark_RELEASE/dataset/img/{name}.jpg"] = jpeg(image)
        for dataset, listed in (("voc", OWN), ("sbd", SBDS)):
            if name in listed:
                label = rng.integers(0, 21, (height, width), np.uint8)
                instance = rng.integers(0, 4, (height, width), np.uint8)
                if dataset == "voc":
                    label[:2], instance[:2] = 255, 255
                labels[dataset, name], objects[dataset, name] = label, instance
        if name in OWN:
            voc[f"VOCdevkit/VOC2012/SegmentationClass/{name}.png"] = png(labels["voc", name])
            voc[f"VOCdevkit/VOC2012/SegmentationObject/{name}.png"] = png(objects["voc", name])
        if ("sbd", name) in labels:
            for folder, values in (("cls", labels), ("inst", objects)):
                path = f"benchmark_RELEASE/dataset/{folder}/{name}.mat"
                sbd[path] = mat(f"GT{folder}", values["sbd", name])
    return Originals(labels, objects, voc, sbd)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """A function that serves archives with the given contents."""
    monkeypatch.setenv("no_proxy", "*")
    sites = []

    def serve(voc, sbd):
        folder = tmp_path / "server"
        folder.mkdir()
        md5s = (
            write_tar(folder / "VOCtrainval_11-May-2012.tar", voc, "w"),
            write_tar(folder / "benchmark.tgz", sbd, "w:gz"),
        )
        server = Server(folder)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        originals = (prepare.VOC_ARCHIVE, prepare.SBD_ARCHIVE)
        archives = tuple(
            archive._replace(
                url=f"http://127.0.0.1:{server.server_port}/{archive.url.rpartition('/')[2]}",
                md5=md5,
            )
            for archive, md5 in zip(originals, md5s, strict=True)
        )
        sites.append(Site(server, tmp_path / "root", archives))
        return sites[-1]

    yield serve
    for site in sites:
        site.stop()


@pytest.fixture
def site(serve, originals):
    return serve(originals.voc, originals.sbd)
