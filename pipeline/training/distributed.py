"""The ranks of a run, as torchrun starts them; one rank needs no process group."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    rank: int = 0
    world_size: int = 1
    hosts: dist.ProcessGroup | None = field(
        default=None, compare=False
    )  # on which processes talk without waiting for their devices

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values / self.world_size

    def any(self, flag: bool) -> bool:
        """Return whether any rank says so; all must ask together."""
        votes = torch.tensor([float(flag)])
        if self.world_size > 1:
            dist.all_reduce(votes, group=self.hosts)
        return bool(votes.item() > 0)

    def of_main(self, values: list[int] | None) -> list[int] | None:
        """Return what the main rank gives; all must ask together."""
        boxed = [values]
        if self.world_size > 1:
            dist.broadcast_object_list(boxed, src=0)
        return boxed[0]

    def wait(self) -> None:
        """Return once all ranks are here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the process group that torchrun describes, if any."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks()
        return
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None
    )
    try:
        hosts = dist.new_group(backend="gloo")
        assert isinstance(hosts, dist.ProcessGroup), "every rank is in it"
        yield Ranks(dist.get_rank(), world_size, hosts)
    finally:
        dist.destroy_process_group()
