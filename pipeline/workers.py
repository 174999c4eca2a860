"""Worker processes, forked from a server that has imported what they need and nothing else, so they start fast and inherit no threads."""

import multiprocessing
from multiprocessing.context import ForkServerContext

_PRELOADED = ["pipeline.extraction.decoding", "pipeline.stream.worker"]


def worker_context() -> ForkServerContext:
    """Return the context in which all worker processes are made."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context
