"""What the tests of several modules need."""

import numpy as np
import pytest

from fsseg_jax.errors import UserError


def message_of(function, *arguments, **options):
    """The one sentence of the UserError that a call must raise."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


def assert_close(result, expected, relative=1e-4):
    """Of one shape, finite, and equal up to `relative` of the largest absolute value."""
    result, expected = np.asarray(result), np.asarray(expected)
    assert result.shape == expected.shape
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(result, expected, rtol=0, atol=relative * abs(expected).max())


def is_close(result, expected, relative):
    """Whether two arrays are equal up to `relative` of the largest absolute value."""
    result, expected = np.asarray(result), np.asarray(expected)
    return abs(result - expected).max() <= relative * abs(expected).max()
