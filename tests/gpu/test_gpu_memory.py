"""Page-locked memory and second streams: what overlaps gives the same bytes as one after the other."""

from itertools import islice

import pytest
import torch
from caches import real
from stream_parts import CPU, stream_spec

from pipeline.cache.reader import Cache
from pipeline.runtime.device import DeviceEvent, SideStream, to_host
from pipeline.runtime.memory import allocate_shared, free_shared, shared_buffer
from pipeline.runtime.page_lock import lock_pages, unlock_pages
from pipeline.stream.batches import BatchStream

CYCLES = 100_000_000  # about 50 ms of a GPU


@pytest.fixture(scope="module")
def cache_path(tmp_path_factory):
    return real(tmp_path_factory.mktemp("cache"), tars=2, images_per_tar=70, views=1)


def keep_busy(device):
    """Give the device work that outlasts what the host does next."""
    if device.type == "cuda":
        torch.cuda._sleep(CYCLES)


def copies(batches, device):
    """Copy each batch by a step that the device only reaches after some time."""
    found = []
    for batch in batches:
        keep_busy(device)
        found.append({name: tensor.clone() for name, tensor in batch.items()})
    return [{name: tensor.cpu() for name, tensor in batch.items()} for batch in found]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_not_overwritten_while_a_step_reads_them(cache_path, device, workers):
    cache = Cache(cache_path)
    spec = stream_spec(cache, views=(0,))
    with BatchStream(cache, spec, device, workers) as stream:
        found = copies(islice(stream, 12), device)
    with BatchStream(cache, spec, CPU, 0) as stream:
        expected = copies(islice(stream, 12), CPU)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_copies_on_a_side_stream_hold_what_was_there(device):
    side, values = SideStream(device), torch.arange(1_000_000, device=device)
    begun = DeviceEvent(device)
    keep_busy(device)
    doubled = values * 2
    done = DeviceEvent(device, since=begun)
    with side.running():
        done.wait()
        copy = to_host(doubled)
    side.wait()
    assert torch.equal(copy, torch.arange(1_000_000) * 2)
    assert done.seconds >= 0


@pytest.mark.gpu
def test_shared_memory_is_page_locked_and_unlocked(capsys):
    (memory,) = allocate_shared(8 << 20, 1, "a test", "free some")
    try:
        tensor = torch.frombuffer(shared_buffer(memory), dtype=torch.uint8)
        locked = lock_pages([memory], "none")
        assert tensor.is_pinned()
        on_gpu = tensor.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        unlock_pages(locked)
        assert not tensor.is_pinned()
        assert torch.equal(on_gpu.cpu(), tensor)
        assert capsys.readouterr().err == ""
        del tensor  # which keeps the memory open
    finally:
        free_shared(memory)
