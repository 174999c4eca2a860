"""Multinomial logistic regression by L-BFGS in float64, on any device; scikit-learn has the same optimum.

Minimised is the mean loss + |W|^2 / (2 C n), scikit-learn's objective divided by C n. The search runs over
W / s, where s standardises the gradient by the spread of each channel: the optimum stays, the steps are few.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.runtime.device import threads

C_GRID = tuple(10 ** (-6 + 11 * i / 44) for i in range(45))  # DINOv2's 10^linspace(-6, 5, 45)
_TOLERANCE, _ROUGH = 1e-12, 1e-8  # of a step's loss: of the fit that counts, and of those that choose C
_MOST_STEPS = 1000
_WORTH_THREADS = 1 << 26  # products in a step
_CHUNK = 1 << 22  # numbers of a chunk, 32 MB


@dataclass(frozen=True, eq=False)
class Logistic:
    """Weights (K, C) and bias (K,) float64 of centred features, their mean (C,), and the loss reached."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    loss: float

    def scores(self, features: Tensor) -> Tensor:
        """Return logits (m, K) float64 of features (m, C)."""
        return (features.double() - self.mean) @ self.weight.T + self.bias


def fit_logistic(
    features: Tensor,
    targets: Tensor,
    classes: int,
    c: float,
    start: Logistic | None = None,
    tolerance: float = _TOLERANCE,
) -> Logistic:
    """Fit K = `classes` to features (n, C) float32 and targets (n,) from 0 to K - 1, both on one device.

    `start` is a fit to features of the same n, for another c. At most 1,000 steps.
    """
    parts = torch.split(features, max(1, _CHUNK // features.shape[1]))  # float64 of all would be too much
    mean = sum((part.double().sum(0) for part in parts), torch.tensor(0.0)) / len(features)
    spread = sum(((part.double() - mean).square().sum(0) for part in parts), 0 * mean) / len(features)
    scale = 1 / (spread / classes + 1 / (c * len(features))).sqrt()
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
    bias = weight.new_zeros(classes)
    if start is not None:
        weight, bias = start.weight / scale, start.bias.clone()
    search = torch.optim.LBFGS(
        [weight.requires_grad_(), bias.requires_grad_()],
        max_iter=_MOST_STEPS,
        max_eval=2 * _MOST_STEPS,
        tolerance_grad=1e-10,
        tolerance_change=tolerance,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def closure() -> Tensor:
        loss, gradient, bias.grad = objective(features, targets, weight * scale, bias, c, mean)
        weight.grad = gradient * scale
        return loss

    # With one thread where a step is short: threads that wait for each other cost ten times more.
    short = features.numel() * classes <= _WORTH_THREADS
    with threads(1 if short else torch.get_num_threads()), torch.no_grad():
        search.step(closure)  # type: ignore[no-untyped-call]
        return Logistic(weight * scale, bias.detach(), mean, float(closure()))


def objective(
    features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, c: float, mean: Tensor | float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss () and its gradients of weight (K, C) and bias (K,), all float64.

    Features (n, C) less `mean` are taken in chunks, so that logits of n images are never held.
    """
    loss, slope, offset = bias.new_zeros(()), torch.zeros_like(weight), torch.zeros_like(bias)
    rows = max(1, _CHUNK // max(weight.shape))
    for some, wanted in zip(torch.split(features, rows), torch.split(targets, rows), strict=True):
        values = some.double() - mean
        logs = (values @ weight.T + bias).log_softmax(1)
        right = wanted[:, None]
        loss -= logs.gather(1, right).sum()
        excess = logs.exp_().scatter_add_(1, right, right.new_full(right.shape, -1).double())
        slope += excess.T @ values
        offset += excess.sum(0)
    n = len(features)
    return loss / n + weight.square().sum() / (2 * c * n), slope / n + weight / (c * n), offset / n


def rate_c(
    features: Tensor, targets: Tensor, classes: int, held: Sequence[Tensor], grid: Sequence[float]
) -> list[dict[str, float]]:
    """Rate each c of a grid by the images that are held out: accuracy and log loss, over all of `held`.

    Each of `held` is a mask (n,) of the images that a fit does not see.
    """
    right = torch.zeros(len(grid), dtype=torch.float64)
    surprise, images = torch.zeros_like(right), sum(int(mask.sum()) for mask in held)
    for mask in held:
        model: Logistic | None = None
        known, wanted = features[~mask], targets[~mask]
        for i, c in enumerate(sorted(grid)):
            model = fit_logistic(known, wanted, classes, c, model, _ROUGH)
            logs = model.scores(features[mask]).log_softmax(1)
            right[i] += float((logs.argmax(1) == targets[mask]).sum())
            surprise[i] -= float(logs.gather(1, targets[mask, None]).sum())
    return [
        {"c": c, "accuracy": float(right[i]) / images, "log loss": float(surprise[i]) / images}
        for i, c in enumerate(sorted(grid))
    ]
