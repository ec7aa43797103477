"""How the tests read an error that a user is meant to read."""

import pytest

from redimnet_jax.errors import UserError


def refusal(call, *args, **kwargs) -> str:
    """The one sentence with which a call ends."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and ". " not in text
    return text
