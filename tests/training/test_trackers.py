"""Metrics reach W&B, Trackio and MLflow, read back by their own readers; a resumed run is the same run there."""

import json
import subprocess
import sys

import pytest
from training_runs import killed_after, metrics, train, trained

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.training.config import RunConfig
from pipeline.training.trackers import TRACKERS

SHOWN = {"loss", "loss/level 5", "gradient_norm", "learning_rate", "images", "seconds", "peak_memory_bytes"}
