"""Devices, shared memory, worker processes, signals and launchers. Imports nothing above it but errors."""
