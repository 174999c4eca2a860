"""Fixtures of the evaluations' tests."""

import pytest

from pipeline.evaluation import metrics


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    """Draw a tenth of the samples for intervals, which would take most of a short test's time."""
    monkeypatch.setattr(metrics, "RESAMPLES", 100)
