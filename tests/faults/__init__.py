"""Processes killed or stopped, full disks, damaged bytes: `make faults` runs all, `make faults-short` a part.

Each test disturbs small real caches and runs many times, at moments and places drawn from --faults-seed.
"""
