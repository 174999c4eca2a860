"""Devices, memory that processes share, worker processes and ordered look-ahead. Imports nothing above it but errors."""
