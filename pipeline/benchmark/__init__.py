"""Measures the parts of both stages side by side, in one run on one machine, so that ratios are fair."""
