"""What the worker of test_workers.py does, and a script that starts it without a main guard."""

import os
import sys


def serve(owner):
    """Answer each message with itself and the worker's path; a number ends the worker with that exit code."""
    while True:
        message = owner.receive()
        if isinstance(message, int):
            os._exit(message)
        owner.send((message, sys.path))


SCRIPT = """
import shutil, sys
from pipeline.runtime.memory import allocate_shared, free_shared
from pipeline.runtime.workers import Worker, WorkerDiedError
from echo_worker import serve
for memory in allocate_shared(4096, 1, "a test", "nothing"):
    free_shared(memory)
worker = Worker("echo", serve)
worker.send("hello")
print(worker.receive())
worker.send(7)
try:
    worker.receive()
except WorkerDiedError as error:
    print(error)
"""
