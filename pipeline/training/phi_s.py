"""PHI-S: a teacher's targets rotated so that all channels vary equally (Ranzinger et al., arXiv 2410.01680).

For values x (D,) of mean mu and covariance U diag(e) U^T the target is

    y = H U^T (x - mu) / alpha,   alpha = sqrt(mean of e)

U^T is the rotation of a PCA. H is a Hadamard matrix divided by sqrt(D): its entries are of equal size, so
each channel of y gets an equal part of every principal component, and the variance of each is 1. Rotations
and one scale change no relative distance, and the map can be undone. A level has one matrix and one mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.objectives.losses import exact


class PhiStandardisation(nn.Module):
    """The maps of M levels of a teacher; without values until they are fitted or loaded."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(levels, width))
        self.register_buffer("matrix", torch.zeros(levels, width, width))

    def forward(self, level: int, values: Tensor) -> Tensor:
        """Return y (..., D), float32 or finer, of values (..., D) of a level."""
        values = exact(values)
        with torch.autocast(values.device.type, enabled=False):  # half precision would blur the targets
            return F.linear(values - self.mean[level], self.matrix[level])


@dataclass(frozen=True)
class Standards:
    """The standardisations of all teachers of a run, and the SHA-256 of their file."""

    teachers: Sequence[PhiStandardisation]
    digest: str


class Moments:
    """Mean and covariance of many values, summed in float64 as they come."""

    def __init__(self) -> None:
        self.count, self._sum, self._products = 0, torch.zeros(()), torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Take values (n, D) float32."""
        self.count += len(values)
        self._sum = self._sum + values.sum(0, dtype=torch.float64).cpu()
        self._products = self._products + (values.T @ values).double().cpu()

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mu (D,) and the covariance (D, D), float64."""
        mean = self._sum / self.count
        return mean, self._products / self.count - mean[:, None] * mean


def phi_s(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return mu (D,) and H U^T / alpha (D, D), float32, for mean and covariance; raises ConfigError."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    alpha = eigenvalues.clamp(min=0).mean().sqrt()
    return mean.float(), (hadamard_matrix(len(mean)) @ vectors.T / alpha).float()


def hadamard_matrix(size: int) -> Tensor:
    """Return an orthogonal matrix (size, size) float64 with entries 1 / sqrt(size) and -1 / sqrt(size).

    Sylvester's doubling of Paley's first construction. Raises ConfigError as `paley_order` does.
    """
    order = paley_order(size)
    matrix = torch.ones(order, order, dtype=torch.float64)
    if order > 1:  # Paley's, for the prime q = order - 1: squares modulo q have the character 1, others -1
        numbers = torch.arange(order - 1)
        character = -torch.ones(order - 1, dtype=torch.float64)
        character[numbers.square() % (order - 1)] = 1
        character[0] = 0
        matrix[1:, 0], matrix[1:, 1:] = -1, character[(numbers[:, None] - numbers) % (order - 1)]
        matrix[1:, 1:] += torch.eye(order - 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def paley_order(size: int) -> int:
    """Return the size from which doubling leads to `size`: 1, or q + 1 with a prime q = 3 mod 4.

    All usual widths are such sizes. Raises ConfigError for one that is not.
    """
    order = size
    while True:
        prime = order - 1
        is_prime = all(prime % divisor for divisor in range(2, math.isqrt(max(prime, 0)) + 1))
        if order == 1 or (prime % 4 == 3 and is_prime):
            return order
        if order % 2 or not order:
            raise ConfigError(
                f"objective.balance 'phi-s' needs a Hadamard matrix of the target's {size} channels, and "
                "none is known here: set objective.balance=equal"
            )
        order //= 2
