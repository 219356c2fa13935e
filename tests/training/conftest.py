"""What several modules need."""

import jax
import pytest


@pytest.fixture
def compile_once(tmp_path_factory):
    """Runs of one test compile the same step: the later ones take it from a cache."""
    before = jax.config.jax_compilation_cache_dir
    folder = tmp_path_factory.getbasetemp() / "compilation"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module", autouse=True)
def _rendered_once(rendered_once):
    """Runs of all tests have the same images."""
