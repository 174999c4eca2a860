"""The ranks of a run as a launcher starts them; one rank needs no process group."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import ConfigError, MaskAlignError
from pipeline.runtime.launch import Process, meeting_point, this_process

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among all. On the group `hosts`, processes talk without waiting for their devices."""

    rank: int = 0
    world_size: int = 1
    hosts: dist.ProcessGroup | None = field(default=None, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values / self.world_size

    def largest(self, *values: int) -> list[int]:
        """Return the largest of each value over the ranks; all must ask together."""
        votes = torch.tensor(values)
        if self.world_size > 1:
            dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.hosts)
        return [int(vote) for vote in votes]

    def decide(self, function: Callable[[], Value]) -> Value:
        """Call a function on the main rank; return its result, or raise its MaskAlignError, on all."""
        value: Any = None
        with self.together():
            if self.is_main:
                value = function()
        if self.world_size == 1:
            return cast("Value", value)
        boxed = [value]
        dist.broadcast_object_list(boxed, src=0, group=self.hosts)
        return cast("Value", boxed[0])

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, which must ask together; they travel as pickles."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self.hosts)
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise on all ranks a MaskAlignError that one raises here: the others would wait for it forever."""
        mine: MaskAlignError | None = None
        try:
            yield
        except MaskAlignError as error:
            mine = error
        for rank, first in enumerate(self.gather(mine)):
            if first is not None:
                first.printed_by_rank = rank if self.world_size > 1 else None
                raise first


def refuse_shared_gpus(gpus: Sequence[str]) -> None:
    """Raise ConfigError if two ranks have the same GPU, by its UUID; "" stands for a CPU."""
    for rank, gpu in enumerate(gpus):
        if gpu and (first := gpus.index(gpu)) < rank:
            error = ConfigError(
                f"ranks {first} and {rank} have the same GPU, {gpu}: start one process for each GPU, or "
                "give each process its own in CUDA_VISIBLE_DEVICES"
            )
            error.printed_by_rank = 0  # all ranks find it
            raise error


def exchanged(store: Store, process: Process, text: str) -> list[str]:
    """Return the texts of all ranks. The first rank, which may hold the store, returns last."""
    ranks = range(process.world_size)
    store.set(f"text {process.rank}", text)
    found = [store.get(f"text {rank}").decode() for rank in ranks]
    store.set(f"read {process.rank}", "")
    if process.rank == 0:
        store.wait([f"read {rank}" for rank in ranks])
    return found


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the process group that a launcher describes, if any.

    Raises ConfigError without an address, and for ranks on one GPU, with which NCCL would fail.
    After an error the group is left standing: NCCL is torn down by all ranks together, and a rank that fails
    alone would wait for the others. Its process must then end at once.
    """
    process = this_process()
    if process.world_size == 1:
        yield Ranks()
        return
    address, port = meeting_point(process)
    on_gpu = device.type == "cuda"
    host = f"[{address}]" if ":" in address else address
    try:
        store, _, _ = next(rendezvous(f"tcp://{host}:{port}", process.rank, process.world_size))
        gpu = str(torch.cuda.get_device_properties(device).uuid) if on_gpu else ""
        refuse_shared_gpus(exchanged(store, process, gpu))
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=process.rank,
            world_size=process.world_size,
            device_id=device if on_gpu else None,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(
            f"rank {process.rank} of {process.world_size} cannot meet the others at {host}:{port} "
            f"({str(error).partition(chr(10))[0]}): check MASTER_ADDR and MASTER_PORT, or use another port"
        ) from error
    # One rank may work long while the others wait: fitting a codebook, evaluating. A dead rank closes its
    # connection, which ends the wait at once.
    hosts = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    assert isinstance(hosts, dist.ProcessGroup), "every rank is in it"
    yield Ranks(process.rank, process.world_size, hosts)
    dist.destroy_process_group()
