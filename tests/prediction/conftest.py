"""Images of several sizes, supports, and a segmenter that has been given them."""

import pytest
from segmenters import make_segmenter, mask_of
from small_models import make_config, random_variables

from fsseg_jax.prediction import sharing


@pytest.fixture(scope="module")
def source(make_source):
    """Images of many sizes, one much wider than high and one much higher than wide."""
    source = make_source(images=9)
    source.images[0] = [part[::3] for part in source.images[0]]
    source.images[1] = [part[:, ::2] for part in source.images[1]]
    assert len({label.shape for _, label, _ in source.images}) == 9
    return source


@pytest.fixture(scope="module")
def images(source):
    return [source.read(index).image for index in range(len(source))]


@pytest.fixture(scope="module")
def shown(source):
    """Two images of class 1, with their masks."""
    rows = source.table.image[source.table.class_id == 1][:2].tolist()
    return [source.read(row).image for row in rows], [mask_of(source, row, 1) for row in rows]


@pytest.fixture
def fitted(shown):
    segmenter = make_segmenter()
    return segmenter.fit(*shown)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a model of two shots, and its configuration and variables."""
    folder = tmp_path_factory.mktemp("saved") / "canet"
    config = make_config("canet", shots=2)
    variables = random_variables(config)
    sharing.save(folder, config, variables, "canet")
    return folder, config, variables
