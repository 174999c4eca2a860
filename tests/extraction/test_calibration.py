"""The channel statistics: which images they are of, and that no channel among them spoils its group."""

import gzip
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from caches import extract, extraction_options, make_schema
from tars import image, make_tars, source_tar, write_tar

from pipeline.cache.encoding import TargetDecoder, channel_statistics, encode_level, whiten
from pipeline.errors import SourceError
from pipeline.extraction.calibration import calibrate, spread_images
from pipeline.extraction.job import build_teacher
from pipeline.extraction.origin import FromTars
from pipeline.views.decoder import Decoder
from pipeline.views.source_tars import SourceTar

CPU = torch.device("cpu")


def spread(tars, workers=0, **limits):
    origin = FromTars(extraction_options(cache="none", shards=tars))
    with closing(Decoder(workers, 64)) as decoder:
        return spread_images(tars, origin, make_schema(), decoder, most_views=1, **limits)


def keys(images):
    return [one.key for one in images]


def test_images_are_spread_evenly_over_tars(tmp_path):
    tars = make_tars(tmp_path, tars=10, images_per_tar=3)
    assert keys(spread(tars, limit=5, most_tars=5)) == [f"{3 * tar:06d}" for tar in (0, 2, 4, 6, 8)]
    assert Counter(int(key) // 3 for key in keys(spread(tars, limit=20))) == dict.fromkeys(range(10), 2)


def test_what_a_tar_lacks_the_next_ones_give(tmp_path):
    few = source_tar(write_tar(tmp_path / "few.tar", {"a": image(0)}))
    bad = source_tar(write_tar(tmp_path / "bad.tar", {f"b{number}": b"no image" for number in range(40)}))
    many = make_tars(tmp_path, tars=1, images_per_tar=20)[0]
    assert len(spread([few, bad, many], limit=12)) == 12
    assert len(spread([few, bad, many])) == 21
    assert len(spread([bad, many], most_tars=1)) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cut_tar_gives_its_whole_samples(shards, tmp_path, workers):
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(shards[0].address).read_bytes()[:40_000])
    found = keys(spread([SourceTar(cut, 40_000)], workers))
    assert 4 < len(found) < 9
    assert found == keys(spread(shards[:1]))[: len(found)]


def test_a_tar_that_cannot_be_read_alone_is_reported_with_its_reason(tmp_path):
    packed = tmp_path / "packed.tar"
    packed.write_bytes(gzip.compress(write_tar(tmp_path / "a.tar", {"a": image(0)}).read_bytes()))
    with pytest.raises(SourceError, match=r"tar 'packed\.tar' is compressed, where only plain tars are read"):
        extract(tmp_path / "a.cache", [SourceTar(packed, packed.stat().st_size)])


def test_no_image_at_all_is_reported_with_a_reason(tmp_path):
    tars = [source_tar(write_tar(tmp_path / f"{name}.tar", {f"x{name}": b"no image"})) for name in "ab"]
    refused = (
        r"none of the 2 tars holds an image that can be decoded, the first is .*a.tar' \(the first sample: "
        r"'xa' cannot be decoded \(no image of a known format\)\); check SHARDS"
    )
    with pytest.raises(SourceError, match=refused):
        extract(tmp_path / "a.cache", tars)
    assert not (tmp_path / "a.cache").exists()


def test_statistics_are_those_of_all_tokens(shards):
    teacher = build_teacher(extraction_options(cache="none", shards=shards))
    images = spread(shards)
    mean, std = calibrate(images, teacher, CPU)
    hidden = teacher.features(torch.from_numpy(np.stack([one.pixels[0] for one in images]))).hidden
    for level, values in enumerate(hidden):
        tokens = whiten(values)[0].flatten(0, 1).double()
        np.testing.assert_allclose(mean[level], tokens.mean(0), atol=1e-5)
        true = tokens.std(0, correction=0)
        np.testing.assert_allclose(std[level], true.clamp(min=true.median().item() / 2), rtol=1e-4)


@pytest.mark.parametrize("encoding", ["int8", "int4"])
def test_a_channel_constant_in_calibration_costs_no_group(encoding):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 10, 128, generator=generator)
    calm = hidden.clone()
    calm[..., 7] = 0.3  # in the first group of 64 channels

    def error(seen):
        mean, std = channel_statistics([(seen,)])
        codes, stats = encode_level(hidden, mean[0], std[0], encoding)
        found = TargetDecoder(mean, std, encoding)(codes[:, None], stats[:, None])[0][:, 0]
        others = [channel for channel in range(64) if channel != 7]
        return (found - whiten(hidden)[0])[..., others].square().mean().sqrt()

    assert error(calm) < 1.3 * error(hidden)
