"""What the tests of several methods need."""

import pytest


@pytest.fixture
def pytorch(torch):
    """What the formulations of the methods in PyTorch share, where there is PyTorch."""
    import pytorch_layers

    return pytorch_layers
