"""What every test shares."""

from collections.abc import Iterator

import pytest
import torch

pytest.register_assert_rewrite("tests.checks")  # so that a check that fails says which values it compared


@pytest.fixture(scope="session", autouse=True)  # before the modules' own fixtures, which train networks
def one_thread() -> Iterator[None]:
    """These tensors are so small that several threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
