"""Tiny studies: files and data."""

import json

BASE = """
[base]
"student.model" = "vit_tiny_patch16_224"
"student.options" = { depth = 2, embed_dim = 32, num_heads = 2 }
"data.workers" = 0
"data.window_blocks" = 1
"optim.steps" = 6
"optim.warmup_steps" = 2
"optim.base_lr" = 0.05
"train.global_batch" = 16
"train.log_every" = 1
"train.checkpoint_every" = 2

[evaluations.knn]
k = 3
"""
TWO = 'title = "tiny"\nseeds = [0, 1]\n[axes]\n"objective.name" = ["maskalign", "fd"]\n' + BASE


def study_file(folder, text=TWO, name="study.toml"):
    path = folder / name
    path.write_text(text)
    return path


def without_times(out):
    """The table without what depends on the clock."""
    table = json.loads((out / "table.json").read_text())
    for line in table["lines"]:
        del line["seconds"]
    return table
