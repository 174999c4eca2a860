"""Command lines of the documents in small: tiny images, teachers of few pixels, two steps, in this process.

words = in_small(line, models)    the words of a line with small sizes; stand-ins of its teachers in `models`
run_line(line, models)            runs them in the current folder; the exit code must be 0
"""

import re
import shlex
import subprocess
from functools import cache, partial
from itertools import pairwise

import timm
from caches import TEACHER
from test_documents import COMMANDS, without_torchrun
from tiny_clip import peaky, write_clip
from typer.testing import CliRunner

from pipeline.cache.reader import Cache
from pipeline.student.export import write_timm_folder

CLIP = "open_clip:ViT-B-16-quickgelu/openai"
DINO = "timm:vit_base_patch14_reg4_dinov2.lvd142m"
TINY = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SHAPE = {"embed_dim": 32, "depth": 6, "num_heads": 4, "num_classes": 0}
HERE = ("--batch-size", "16", "--workers", "0", "--device", "cpu")
SMALL_VIEW = ("--image-size", "32", "--patch-size", "8", *HERE)
SMALL_RUN = (
    "student.options={depth=2, embed_dim=32, num_heads=2}",
    "data.workers=0",
    "optim.steps=2",
    "optim.warmup_steps=1",
    "train.global_batch=8",
    "data.lanes=1",
)
SMALL_STUDY = (*SMALL_RUN, "seeds=[0]", "evaluations={knn = {k = 5}}")
SMALL = {
    "pack-images": ("--workers", "0", "--images-per-tar", "20"),
    "extract-teacher": SMALL_VIEW,
    "train-student": ("--device", "cpu", *(word for change in SMALL_RUN for word in ("--set", change))),
    "evaluate-student": ("--workers", "0", "--device", "cpu"),
    "run-study": ("--device", "cpu", *(word for change in SMALL_STUDY for word in ("--set", change))),
    "inspect-cache": (),
    "compare-runs": (),
}
STEPS = "steps=2 batch=2 warmup=1"
QUICK = {  # settings for an evaluation and kind
    "probe": "c=[0.1,10.0]",
    "knn,probe": "probe.c=[0.1,10.0]",
    "probe grid": "epochs=1 batch=16",
    "probe published": "epochs=1 batch=16",
    "attentive": "epochs=1 batch=16",
    "attentive capi": "epochs=1 batch=16",
    "finetune": "epochs=1 warmup_epochs=0 batch=16 lr=0.001",
    "segment": f"size=32 crop=[32,32] stride=[32,32] {STEPS}",
    "segment knn": "size=32 k=[1,3]",
    "segment upernet": f"size=32 crop=[32,32] stride=[32,32] channels=16 {STEPS}",
    "detect": f"image_size=64 channels=32 hidden=64 convolutions=1 rois=32 resamples=2 {STEPS}",
    "attention": "images=8",
    "robustness": "k=5",
}
REDUCED = {  # patterns to replace: tiny caches lack them, or they take long
    "open_clip:local-dir:PATH": CLIP,
    r"\{0+\.\.\d+\}": "{0000..0001}",
    r"\[7,9,11\]": "[1,3,5]",
    "--levels 7,11": "--levels 3,5",
    r"k=\[20,10,100,200\]": "k=[20,10]",
    r"--budget epochs=\d+": "--budget steps=1",
    r"studies/photographs\.toml": "studies/photographs.toml --budget steps=1 --only 1/6",
    "zero-shot --run runs/b16": f"zero-shot --run runs/b16 --set teacher={CLIP}",
    "--image-size 384": "--image-size 48",
    "name=beit(?= )": "name=beit --set objective.codebook_size=8",
}
JOBS = {"stages/slurm/extract.sbatch": "extract-teacher", "stages/slurm/train.sbatch": "train-student"}


def tiny_timm(architecture, folder, size, patch):
    """Write a tiny model of an architecture of timm; return its address."""
    options = SHAPE | {"img_size": size, "patch_size": patch}
    write_timm_folder(peaky(timm.create_model(architecture, **options)), architecture, options, folder)
    return f"timm:local-dir:{folder}"


def tiny_open_clip(folder, **changes):
    """Write a tiny CLIP; return its address."""
    write_clip(folder, vocabulary=49_408, layers=6, **changes)
    return f"open_clip:local-dir:{folder}"


STAND_INS = {  # of teachers, with patches of 8 and 7 pixels for those of 16 and 14
    CLIP: tiny_open_clip,
    "open_clip:ViT-L-14-quickgelu/openai": partial(tiny_open_clip, patch_size=7, image_size=28),
    "open_clip:ViT-B-16-SigLIP2/webli": partial(tiny_timm, "vit_base_patch16_siglip_224", size=32, patch=8),
    DINO: partial(tiny_timm, "vit_base_patch14_reg4_dinov2", size=70, patch=7),
    TINY: partial(tiny_timm, "vit_tiny_patch16_224", size=32, patch=8),
    TEACHER: lambda _folder: TEACHER,
}


@cache
def stand_in(teacher, models):
    """Return the address of a tiny teacher of the same kind, in the folder `models`."""
    return STAND_INS[teacher](models / re.sub(r"\W+", "-", teacher))


def value(words, option):
    return words[words.index(option) + 1]


def values(words, option):
    return [following for word, following in pairwise(words) if word == option]


def teacher_of(path, models):
    """Return the address of the stand-in that made a cache, for timm or CLIP B/16."""
    facts = Cache(path).schema.teacher
    named = [teacher for teacher in STAND_INS if teacher.startswith(f"{facts.library}:{facts.name}")]
    return stand_in(named[0] if named else CLIP, models)


def in_small(line, models):
    """Return the command and the words of a line with small sizes, without torchrun."""
    for long, short in REDUCED.items():
        line = re.sub(long, short, line)
    words = without_torchrun(shlex.split(line))
    for index, word in enumerate(words):
        name, separator, address = word.rpartition("=")
        if address in STAND_INS:
            words[index] = name + separator + stand_in(address, models)
    command = JOBS.get(words[1], words[0])
    small = HERE if "--views-from" in words else SMALL[command]
    kind = next((word[len("kind=") :] for word in words if word.startswith("kind=")), "")
    quick = QUICK.get(f"{words[1]} {kind}".strip(), "") if command == "evaluate-student" else ""
    if words[-1] == "--teacher":
        words += ["--teacher-spec", teacher_of(words[2], models)]
    return command, [*words, *small, *(word for change in quick.split() for word in ("--set", change))]


def run_line(line, models, job=None):
    """Run a line in small in the current folder; `job` is the environment of Slurm's scripts."""
    if line.startswith("awk "):
        subprocess.run(["bash", "-c", line], check=True)
        return
    command, words = in_small(line, models)
    if words[0] == "sbatch":
        result = subprocess.run(["bash", *words[1:]], env=job, capture_output=True, text=True)
        assert result.returncode == 0, f"{line}\n{result.stderr}"
    else:
        result = CliRunner().invoke(COMMANDS[command], words[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{line}\n{result.output}"
