"""AdamW with timm's parameter groups and timm's cosine schedule per step."""

from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import AdamW

from pipeline.training.sections import OptimConfig

REFERENCE_BATCH = 256


def build_optimiser(
    model: nn.Module, no_weight_decay: set[str], optim: OptimConfig, global_batch: int
) -> AdamW:
    """Return AdamW over what requires gradients; norms, biases and `no_weight_decay` are not decayed."""
    groups = param_groups_weight_decay(model, optim.weight_decay, no_weight_decay_list=no_weight_decay)
    return AdamW(groups, lr=optim.base_lr * global_batch / REFERENCE_BATCH, betas=optim.betas, fused=True)


def build_schedule(optimiser: AdamW, optim: OptimConfig, steps: int, warmup: int) -> CosineLRScheduler:
    """Return a schedule that is a function of the step: linear warm-up from zero, then a cosine to min_lr."""
    return CosineLRScheduler(
        optimiser,
        t_initial=steps - warmup,
        lr_min=optim.min_lr,
        warmup_t=warmup,
        warmup_prefix=True,
        t_in_epochs=False,
    )
