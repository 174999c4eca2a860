"""The origin of results: version, commit, command, host and time, for run.json and the log of a cache."""

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import printable


def provenance(*libraries: str) -> dict[str, Any]:
    """Describe this process: our version and commit, command, host, start, and versions of libraries.

    The command is shell input, without secrets; bytes that are not UTF-8 are escaped.
    """
    words = [Path(sys.argv[0]).name, *map(printable, sys.argv[1:])]
    versions = {"python": platform.python_version()}
    for name in ("maskalign", *libraries):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue  # an optional one, or this project where it is not installed
    return {
        "maskalign": versions.pop("maskalign", None),
        "commit": git_commit(),
        "command": shlex.join(words).encode("utf-8", "backslashreplace").decode(),
        "host": platform.node(),
        "began": utc_now(),
        "versions": versions,
    }


def cpu_name() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_commit() -> str | None:
    """Return the commit of this source tree, -dirty if files were changed; None without a git checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # an installed package must not report the project around it
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
