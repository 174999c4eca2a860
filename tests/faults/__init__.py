"""Processes killed, stopped or told to end, disks that fill up, bytes that rot: `make faults` runs it all, `make faults-short` a part.

Each test does its worst to small real caches and runs, many times, at places and moments drawn from a seed (--faults-seed).
"""
