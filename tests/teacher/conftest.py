"""Pictures that the teachers look at, and one thread: towers this small lose more to threads than they win."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (2, 60, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
