"""Record ten training steps on a golden cache in steps.json.

Command: `PYTHONPATH=.:tests python tests/training/record_steps.py`. steps.json was written at commit b053319,
before objectives were modules of their own. Do not write it again: it shows that what a run computes has not
changed since then, bit for bit on the processor and torch version of the record.
"""

import hashlib
from pathlib import Path

import torch

from pipeline.provenance import cpu_name

FILE = Path(__file__).parent / "steps.json"
CACHE = Path(__file__).parents[1] / "golden" / "schema_1_0" / "int8.cache"
STEPS = 10
TINY = {
    "data": {"workers": 0, "window_blocks": 1},
    "mask": {"ratio": 0.5},
    "student": {
        "model": "vit_tiny_patch16_224",
        "options": {"depth": 3, "embed_dim": 32, "num_heads": 2},
        "drop_path": 0.1,
    },
    "optim": {"steps": STEPS, "warmup_steps": 2, "base_lr": 0.05},
    "train": {"global_batch": 4, "log_every": 1, "checkpoint_every": 100},
}
VARIANTS = {
    "paper": {},
    "mlp, cosine, raw targets": {
        "alignment": {"mode": "layerwise", "head": "mlp"},
        "loss": {"kind": "cosine", "target": "none"},
    },
    "unmasked, one level": {
        "data": {"levels": [5]},
        "mask": {"ratio": 0.0, "strategy": "random"},
        "alignment": {"mode": "last", "head": "norm_linear"},
        "loss": {"kind": "l2", "target": "l2"},
    },
}


def merged(base, changes):
    """Merge sections of two configurations."""
    return {name: {**base.get(name, {}), **changes.get(name, {})} for name in {**base, **changes}}


def machine():
    """What decides the last bits of a sum: libraries take other ways on another maker's processors."""
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": cpu_name(),
    }


def recorded(losses, weights):
    """Describe a run: the losses of all steps, and digest, sums and norms of the final weights."""
    digest = hashlib.sha256(
        b"".join(value.contiguous().numpy().tobytes() for _, value in sorted(weights.items()))
    ).hexdigest()
    sums = {
        name: [value.double().sum().item(), value.double().norm().item()]
        for name, value in sorted(weights.items())
    }
    return {"losses": losses, "sha256": digest, "weights": sums}
