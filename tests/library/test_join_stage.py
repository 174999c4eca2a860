"""webdataset reads view tars as it always does, and the stage adds the targets of each key."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from cache.contents import flip
from torch.utils.data import DataLoader
from webdataset.gopen import gopen_schemes

import maskalign
from pipeline.errors import CacheError, ConfigError

# webdataset leaves tars open that it has not read to their end
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cache(small_cache_path):
    return maskalign.Cache(small_cache_path)


def reader(urls, **options):
    return wds.WebDataset(urls, shardshuffle=False, **options)


def test_samples_get_the_targets_of_their_keys(cache):
    rows = {key: row for row, key in enumerate(cache.keys())}
    found = list(reader(cache.view_tars(view=1)).compose(maskalign.with_targets(cache, levels=[3, 5])))
    assert [sample["__key__"] for sample in found] == list(rows)
    features, attention = cache.features([3, 5], view=1), cache.attention(view=1)
    for sample in found:
        row = rows[sample["__key__"]]
        assert np.array_equal(sample["features"], features[row])
        assert np.array_equal(sample["attention"], attention[row])
        assert int(sample["cls"]) == cache.labels(row)


def targets_match(cache, samples):
    """Count samples, each of which must have the features of its own row."""
    features, rows = cache.features(5), {key: row for row, key in enumerate(cache.keys())}
    keys = [sample["__key__"] for sample in samples]
    assert all(np.array_equal(one["features"], features[rows[one["__key__"]]]) for one in samples)
    assert len(set(keys)) == len(keys)
    return len(keys)


def test_tars_and_samples_may_be_shuffled(cache):
    stage, tars = maskalign.with_targets(cache, levels=5), cache.view_tars()
    behind = reader(random.Random(1).sample(tars, len(tars))).shuffle(50).compose(stage)
    assert targets_match(cache, list(behind)) == 140
    before = wds.WebDataset(tars, shardshuffle=2).compose(stage).shuffle(50).decode("rgb8", partial=True)
    assert targets_match(cache, list(before)) == 140


def test_tars_may_be_the_output_of_a_command(cache):
    assert {"s3", "az"} & gopen_schemes.keys() == set()  # docs/library.md gives commands for these
    assert {"https", "gs"} <= gopen_schemes.keys()
    commands = [f"pipe:cat '{tar}' | cat" for tar in cache.view_tars()]
    stage = maskalign.with_targets(cache, levels=5)
    assert targets_match(cache, list(reader(commands).compose(stage))) == 140


def test_workers_and_nodes_split_the_tars(cache):
    stage = pickle.loads(pickle.dumps(maskalign.with_targets(cache, levels=5)))
    loader = DataLoader(reader(cache.view_tars()).compose(stage), batch_size=None, num_workers=2)
    assert targets_match(cache, list(loader)) == 140

    def second_of_two(urls):
        return list(urls)[1::2]

    node = reader(cache.view_tars(), nodesplitter=second_of_two).compose(stage)
    assert targets_match(cache, list(node)) == 70


def test_a_damaged_crop_is_refused(cache_copy):
    cache = maskalign.Cache(cache_copy)
    tar = Path(cache.view_tars()[0])
    flip(tar, 2000)  # in the first image
    samples = reader([str(tar)]).compose(maskalign.with_targets(cache, levels=5))
    with pytest.raises(CacheError, match=r"sample '000000' .* does not match its checksum: inspect-cache"):
        next(iter(samples))


def test_a_sample_without_its_target_is_refused(cache, small_cache_path):
    with pytest.raises(ConfigError, match=r"tar 'train-0000.tar' is not a view tar of cache"):
        next(
            iter(
                reader([f"{small_cache_path.parent}/tars/train-0000.tar"]).compose(
                    maskalign.with_targets(cache)
                )
            )
        )
    stage = maskalign.with_targets(cache)
    sample = next(iter(reader(cache.view_tars())))
    with pytest.raises(CacheError, match=r"sample 'other' of view tar .* has no target"):
        next(stage([{**sample, "__key__": "other"}]))


def test_changed_members_need_the_check_switched_off(cache):
    tars = cache.view_tars()
    decoded = reader(tars).decode("rgb8")
    with pytest.raises(ConfigError, match="is decoded already: put with_targets before"):
        next(iter(decoded.compose(maskalign.with_targets(cache))))
    with pytest.raises(
        ConfigError, match="a sample is a tuple without __url__ and __key__: put with_targets"
    ):
        next(iter(maskalign.with_targets(cache)([(b"a tuple of jpg",)])))
    images = reader(tars, select_files=lambda name: name.endswith(".jpg"))
    with pytest.raises(CacheError, match="selects or renames members, give check_crops=False"):
        next(iter(images.compose(maskalign.with_targets(cache))))
    for samples in (decoded, images):
        stage = maskalign.with_targets(cache, 5, check_crops=False)
        assert targets_match(cache, list(samples.compose(stage))) == 140
