"""Stage one: source tars through decoding, teacher and encoding into the units of a cache."""
