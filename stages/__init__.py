"""The programs that a person runs: read options, build, run, report."""
