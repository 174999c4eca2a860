"""The speed of a teacher on this machine, for a forecast."""

import time

import numpy as np
import torch

from pipeline.cache.schema import CacheSchema
from pipeline.extraction.encode import FeatureEncoder, in_precision
from pipeline.extraction.options import ExtractionOptions
from pipeline.teacher.teacher import Teacher

_SECONDS = 3.0


def measure_teacher(options: ExtractionOptions, teacher: Teacher, schema: CacheSchema) -> float:
    """Return the views a second of the teacher, not compiled, with the encoding of its features.

    It takes a few seconds at most: batches grow up to that of the options, and the last size counts.
    """
    mean = np.zeros((len(schema.levels), schema.teacher.width), np.float32)
    encoder = FeatureEncoder(teacher, mean, mean + 1, schema, options.device, options.batch_size)
    side, size = options.image_size, 1
    pixels = torch.zeros((options.batch_size, side, side, 3), dtype=torch.uint8, device=options.device)

    def seconds() -> float:
        begun = time.perf_counter()
        with in_precision(teacher, options.device):
            encoder.features(pixels[:size])
        if options.device.type == "cuda":
            torch.cuda.synchronize(options.device)
        return time.perf_counter() - begun

    begin = time.perf_counter()
    seconds()  # the first call sets things up
    while True:
        taken = seconds()
        larger = min(2 * size, options.batch_size)
        if size == larger or time.perf_counter() - begin + 2 * taken > _SECONDS:
            return size / min(taken, seconds())  # the first call of a size may set things up
        size = larger
