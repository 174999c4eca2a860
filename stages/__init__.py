"""The programs that a person runs: read options, build, run, report.

`python -m stages.NAME` puts the working folder first on the path. It is taken off, unless it is the one that holds this package:
a user's own pipeline.py or queue.py must not be imported in place of ours or the library's.
"""

import sys
from pathlib import Path

if sys.path and Path(sys.path[0] or ".").resolve() == Path.cwd() != Path(__file__).resolve().parents[1]:
    del sys.path[0]
