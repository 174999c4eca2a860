"""The training operations of one image, counted on the objective itself, without data and without computing.

The tensors are on torch's meta device: they have shapes and no values. A new objective needs no line here.
"""

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.objectives.objective import MaskedView, Objective, Setting, Targets


def training_operations(objective: Objective, setting: Setting, visible: int) -> int:
    """Return the operations (FLOP) of one image's forward and backward pass with `visible` patches.

    A multiply-accumulate is two operations. Linear layers, convolutions and attention products count; without
    gradient they count a third, and the patch embedding counts two thirds, since pixels get no gradient.
    Norms, softmax, GELU, the decoding of targets and the teacher do not count.
    """
    stand_ins = {
        name: torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)
        for name, tensor in (*objective.named_parameters(), *objective.named_buffers())
    }
    # What the stream delivers for one image, on the meta device too.
    needs, patches = objective.needs, (setting.image_size // setting.patch_size) ** 2
    found: dict[str, list[Tensor]] = {"visible": [], "hidden": []}
    for teacher in setting.teachers:
        tokens = {"visible": visible + int(teacher.teacher_has_cls), "hidden": patches - visible}
        width = teacher.target_width(needs.target)
        for part, levels in needs.targets(teacher.levels).items():
            found[part] += [torch.empty(1, tokens[part], width, device="meta") for _ in levels]
    shape = (1, visible if needs.pixels == "visible" else patches, 3 * setting.patch_size**2)
    hidden = torch.empty(1, patches - visible, dtype=torch.int64, device="meta")
    view = MaskedView(
        torch.empty(shape, dtype=torch.uint8, device="meta"),
        torch.empty(1, visible, dtype=torch.int64, device="meta"),
        hidden if needs.positions else None,
        torch.empty(1, dtype=torch.int64, device="meta") if needs.classes else None,
    )
    # On some devices the counter misses fused attention; it counts MATH attention on all.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss: Tensor = functional_call(objective, stand_ins, (view, Targets(**found)))[0]
        loss.backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())
