"""The teacher's part: one graph, and batches and rows that depend on their unit alone."""

import numpy as np
import pytest
import torch
from caches import extraction_options

from pipeline.cache.units import Unit
from pipeline.errors import ConfigError
from pipeline.extraction.encode import FeatureEncoder
from pipeline.extraction.job import build_schema, build_teacher
from pipeline.extraction.lane import PixelInput

CPU = torch.device("cpu")
UNIT = Unit(unit=0, source="a.tar", source_bytes=1, view=0, first_row=0)


def encoder_of(batch_size=8, teacher="timm:test_vit.random", compile="off", **changes):
    options = extraction_options(cache="none", shards=[], teacher=teacher, **changes)
    made = build_teacher(options)
    mean, std = (np.full((len(made.levels), made.facts.width), value, np.float32) for value in (0.1, 0.9))
    return FeatureEncoder(made, mean, std, build_schema(options, made), CPU, batch_size, compile)


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.mark.bench
@pytest.mark.parametrize(
    ("teacher", "encoding"),
    [
        ("timm:test_vit.random", "int8"),
        ("timm:test_vit.random", "int4"),
        ("timm:test_vit4.random", "float16"),
    ],
)
def test_teacher_whitening_and_encoding_are_one_graph(teacher, encoding):
    graphs = []

    def counted(module, _inputs):
        graphs.append(module)
        return module.forward

    encoder = encoder_of(teacher=teacher, encoding=encoding)
    torch._dynamo.reset()
    pixels, others = torch.from_numpy(images(16)).chunk(2)
    compiled = torch.compile(encoder.features, fullgraph=True, dynamic=False, backend=counted)
    with torch.inference_mode():
        codes, stats, importance = compiled(pixels)
        compiled(others)
        expected = encoder.features(pixels)
    assert len(graphs) == 1
    assert all(torch.equal(one, other) for one, other in zip(codes, expected[0], strict=True))
    assert torch.equal(stats, expected[1])
    assert importance is expected[2] or torch.equal(importance, expected[2])


@pytest.mark.bench
def test_whole_batches_are_compiled_before_they_come():
    graphs = []
    backend = torch.compiler.set_stance(
        force_backend=lambda module, _: graphs.append(module) or module.forward
    )
    torch._dynamo.reset()
    encoder = encoder_of(compile="on")
    with backend:
        encoder.prepare()
        assert len(graphs) == 1
        encoder.collect(encoder.launch(torch.from_numpy(images(8)), [str(n) for n in range(8)], UNIT))
    assert len(graphs) == 1


@pytest.mark.parametrize(("count", "size"), [(1, 2), (2, 2), (3, 4), (7, 8), (8, 8)])
def test_a_short_batch_is_filled_up_to_one_of_four_sizes(count, size):
    pixels = PixelInput(8, 64, CPU)
    pixels.add(images(8))
    assert pixels.room == 0
    pixels.begin()
    pixels.add(images(count))
    batch = pixels.batch()
    assert len(batch) == size
    np.testing.assert_array_equal(batch[:count], images(count))
    assert not batch[count:].any()


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_rows_do_not_depend_on_the_batch_launched_meanwhile(keep):
    encoder = encoder_of(keep=keep)
    first, second = images(16).reshape(2, 8, 64, 64, 3)
    keys = [str(number) for number in range(16)]
    alone = encoder.collect(encoder.launch(torch.from_numpy(first), keys[:8], UNIT))
    batch = encoder.launch(torch.from_numpy(first), keys[:8], UNIT)
    encoder.launch(torch.from_numpy(second), keys[8:], UNIT)
    for name, rows in encoder.collect(batch).items():
        np.testing.assert_array_equal(rows, alone[name])


def test_a_compiler_that_fails_is_done_without():
    pixels, keys = torch.from_numpy(images(8)), [str(number) for number in range(8)]
    expected, encoder = encoder_of().launch(pixels, keys, UNIT), encoder_of(compile="on")
    encoder.must_compile = False  # as with `auto` on a GPU
    with torch.compiler.set_stance("fail_on_recompile"):  # whatever is not compiled yet raises
        found = encoder.launch(pixels, keys, UNIT)
        with pytest.raises(ConfigError, match=r"the teacher cannot be compiled \(.*\); give --compile off"):
            encoder_of(compile="on").launch(pixels, keys, UNIT)
    assert (encoder.compiled, encoder.compiler_fault.partition(":")[0]) == (False, "RuntimeError")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.codes, expected.codes, strict=True))
