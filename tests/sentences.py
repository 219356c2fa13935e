"""What wrong input is answered with."""

import pytest

from fsseg_jax.errors import UserError


def message_of(function, *arguments, **options):
    """The one sentence of the UserError that a call must raise."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message
