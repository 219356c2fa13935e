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
    files = {"VOCdevkit/VOC2012/Annotations/2007_000003.xml": b"<annotation/>"}
    for split, listed in VOC_LISTS.items():
        files[f"VOCdevkit/VOC2012/{LISTS}/{split}.txt"] = "\n".join([*listed, ""]).encode()
        files[f"VOCdevkit/VOC2012/ImageSets/Main/{split}.txt"] = b"2007_000027\n"
    for split, listed in SBD_LISTS.items():
        files[f"benchmark_RELEASE/dataset/{split}.txt"] = "\n".join([*listed, ""]).encode()
    files["benchmark_RELEASE/README.txt"] = b"read me"
    for name in [*names, "2007_000027"]:  # the last one is in no list
        height, width = rng.integers(30, 50, 2)
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        files[f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg"] = jpeg(image)
        files[f"benchmark_RELEASE/dataset/img/{name}.jpg"] = jpeg(image)
        for dataset, listed in (("voc", OWN), ("sbd", SBDS)):
            if name in listed:
                label = rng.integers(0, 21, (height, width), np.uint8)
                instance = rng.integers(0, 4, (height, width), np.uint8)
                if dataset == "voc":
                    label[:2], instance[:2] = 255, 255
                labels[dataset, name], objects[dataset, name] = label, instance
        if name in OWN:
            files[f"VOCdevkit/VOC2012/SegmentationClass/{name}.png"] = png(labels["voc", name])
            files[f"VOCdevkit/VOC2012/SegmentationObject/{name}.png"] = png(objects["voc", name])
        if ("sbd", name) in labels:
            for folder, values in (("cls", labels), ("inst", objects)):
                path = f"benchmark_RELEASE/dataset/{folder}/{name}.mat"
                files[path] = mat(f"GT{folder}", values["sbd", name])
    return Originals(labels, objects, files)


@pytest.fixture
def serve(tmp_path, monkeypatch, originals):
    """A function that serves the archives with changed files; None leaves one out."""
    monkeypatch.setenv("no_proxy", "*")
    sites = []

    def serve(changes=()):
        folder, archives = tmp_path / "server", []
        folder.mkdir()
        server = Server(folder)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        contents = {**originals.files, **dict(changes)}
        for archive, mode in ((prepare.VOC_ARCHIVE, "w"), (prepare.SBD_ARCHIVE, "w:gz")):
            top, name = archive.folder.split("/")[0], archive.url.rpartition("/")[2]
            files = {path: x for path, x in contents.items() if x and path.startswith(top)}
            url = f"http://127.0.0.1:{server.server_port}/{name}"
            archives.append(archive._replace(url=url, md5=write_tar(folder / name, files, mode)))
        sites.append(Site(server, tmp_path / "root", tuple(archives)))
        return sites[-1]

    yield serve
    for site in sites:
        site.stop()


@pytest.fixture
def site(serve):
    return serve()
