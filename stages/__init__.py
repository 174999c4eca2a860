"""The programs that a person runs: read options, build, run, report.

`python -m stages.NAME` puts the working folder first on the path. We remove it unless it holds this package:
otherwise a user's own pipeline.py or queue.py would be imported in place of ours or the library's.
"""

import sys
from contextlib import suppress
from pathlib import Path

with suppress(FileNotFoundError):  # the working folder was removed, which stages.console reports
    if sys.path and Path(sys.path[0] or ".").resolve() == Path.cwd() != Path(__file__).resolve().parents[1]:
        del sys.path[0]
