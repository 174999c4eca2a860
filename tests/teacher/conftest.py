"""Images that the teachers look at."""

import pytest
import torch


@pytest.fixture
def pixels():
    return torch.randint(
        0, 256, (2, 60, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
    )
