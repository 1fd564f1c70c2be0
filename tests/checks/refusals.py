"""What a refusal has to name."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from glr_lightning.errors import ConfigurationError


@contextmanager
def refused(option: str | None, *advice: str, error: type[ConfigurationError] = ConfigurationError) -> Iterator[None]:
    """Check that the block raises exactly this error, about this option, and says in one line what to do.

    Args:
        option: the option at fault, as `error.option` has it; None for a combination, which takes some advice.
        advice: texts that the message holds.
        error: the class of the error; another class that derives from it will not do.
    """
    assert option is not None or advice, "without an option, the advice says which refusal is meant"
    with pytest.raises(error) as caught:
        yield
    assert type(caught.value) is error
    assert caught.value.option == option, str(caught.value)
    assert "\n" not in str(caught.value)
    for words in advice:
        assert words in str(caught.value)
