"""What happens when processes are killed, stopped or told to end, disks fill up and bytes rot. `make faults` runs it all.

Each part of it takes a seed, does its worst to small real caches and runs, and returns rows of the table that is printed at the end.
"""
