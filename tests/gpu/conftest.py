"""The device of each test: a GPU for `make gpu-check`, and the CPU for all others, which tests the tests."""

import pytest
import torch


def pytest_configure(config):
    """Name the markers, since make gpu-check does not read pyproject.toml."""
    for marker in ("gpu", "bench", "faults"):
        config.addinivalue_line("markers", f"{marker}: see pyproject.toml")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """A device; what other tests have compiled is forgotten."""
    torch._dynamo.reset()
    return torch.device(request.param)
