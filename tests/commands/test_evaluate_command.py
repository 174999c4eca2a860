"""evaluate-student at the command line: students and teachers against features made without our code."""

import ctypes
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from contextlib import contextmanager

import caches
import numpy as np
import pytest
import timm
import torch
from caches import TEACHER
from calls import call, call_alone, cases
from neighbour_votes import knn_predictions
from PIL import Image
from safetensors.torch import load_file, save_file
from tars import image, write_tar
from tiny_clip import write_clip

from pipeline.cache.reader import Cache
from pipeline.config import load_config
from pipeline.report.compared import read_compared
from pipeline.report.scores import add_scores, read_scores, student_digest
from pipeline.teacher.load import load_teacher
from pipeline.training.config import RunConfig
from pipeline.training.initial import initial_objective
from pipeline.views.codec import decode_view
from stages.evaluate_student import app
from stages.train_student import train_student

RECIPE = """
data = {workers = 0, window_blocks = 1}
mask = {ratio = 0.5}
student.model = "vit_tiny_patch16_224"
student.options = {depth = 2, embed_dim = 32, num_heads = 2}
student.drop_path = 0.5
optim = {steps = 2, warmup_steps = 1, base_lr = 0.2}
train = {global_batch = 8, seed = 5}
"""
MODEL = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 0, "img_size": 64, "patch_size": 16}
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
SETTINGS = ("--set", "k=3", "--batch-size", "5", "--workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def run(cache, recipe):
    """A run of two steps."""
    folder = recipe.parent / "run"
    words = ["--cache", cache, "--run", folder, "--config", recipe, "--device", "cpu"]
    call(train_student, *words, code=0)
    return folder


def knn(*arguments):
    return call(app, "knn", *arguments, *SETTINGS)


def judged(tmp_path, *arguments):
    """Return images in bank and test, and the accuracies, of an evaluation, compared with what it prints."""
    result = knn(*arguments, "--out", tmp_path / "result.json")
    assert (result.exit_code, result.stderr) == (0, "")
    scores = json.loads((tmp_path / "result.json").read_text())
    found = {score["representation"]: score["metrics"]["top-1"] for score in scores}
    bank, test = scores[0]["bank"]["images"], scores[0]["test"]["images"]
    for name, value in found.items():
        assert f"{name:<5} top-1 {value:.1%}, mean per class " in result.stdout
    learnt = "" if scores[0]["bank"] == scores[0]["test"] else f", {bank} to learn from"
    assert f"{test} images of 4 classes{learnt}; chance " in result.stdout
    return bank, test, found


def student_tokens(state, pixels):
    """Tokens after the final norm of a plain timm model with some weights, for (B, S, S, 3) uint8."""
    model = timm.create_model("vit_tiny_patch16_224", **MODEL)
    model.load_state_dict(state)
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        return model.eval().forward_features((images - IMAGENET[0]) / IMAGENET[1])


def cached_pixels(cache):
    """Return crops, labels and image numbers of all view tars of a cache."""
    pixels, labels, numbers = [], [], []
    for unit in Cache(cache).units:
        with tarfile.open(cache / "views" / f"{unit.stem}.tar") as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith(".jpg"):
                    pixels.append(decode_view(data, "jpeg"))
                    numbers.append(int(member.name[:-4]))
                else:
                    labels.append(int(data))
    return pixels, torch.tensor(labels), torch.tensor(numbers)


def centre(data):
    """Resize the shorter side to 64 / 0.875 = 73 and cut out the middle, by Pillow alone."""
    source = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 73 / min(source.size)
    source = source.resize(
        tuple(73 if side == min(source.size) else int(side * scale) for side in source.size), Image.BICUBIC
    )
    left, top = (round((side - 64) / 2) for side in source.size)
    return np.asarray(source.crop((left, top, left + 64, top + 64)))


def expected(tokens, labels, *queries, groups=None):
    """Score mean patch tokens and CLS: (n, 17, F) and labels (n,), of queries the same."""
    asked, truth = queries or (tokens, labels)
    pairs = {"cls": (tokens[:, 0], asked[:, 0]), "mean": (tokens[:, 1:].mean(1), asked[:, 1:].mean(1))}
    return {
        name: (knn_predictions(bank, labels, query, k=3, groups=groups) == truth).double().mean().item()
        for name, (bank, query) in pairs.items()
    }


def initial_state(cache, recipe):
    return initial_objective(load_config(RunConfig, recipe), Cache(cache)).encoder.vit.state_dict()


def test_a_runs_student_on_the_views_of_a_cache(cache, run, tmp_path):
    pixels, labels, numbers = cached_pixels(cache)
    tokens = student_tokens(load_file(run / "student.safetensors"), pixels)
    scores = expected(tokens, labels, groups=(numbers, numbers))
    assert judged(tmp_path, "--run", run, "--cache", cache) == (48, 48, scores)


def test_an_untrained_student_is_the_run_before_its_first_step(cache, run, recipe, tmp_path):
    pixels, labels, numbers = cached_pixels(cache)
    state = initial_state(cache, recipe)
    trained = load_file(run / "student.safetensors")
    assert any(not torch.equal(state[name], trained[name]) for name in trained)
    scores = expected(student_tokens(state, pixels), labels, groups=(numbers, numbers))
    of_run = judged(tmp_path, "--untrained", "--run", run, "--cache", cache)
    assert of_run == (48, 48, scores)
    lost = call(app, "knn", "--untrained", "--run", run, "--cache", cache, "--device", "cpu", "--workers", 0)
    assert "the scores are not kept: give --report RUN or --out FILE.json" in lost.stderr
    assert judged(tmp_path, "--untrained", "--config", recipe, "--cache", cache) == of_run


@pytest.fixture(scope="module")
def test_tar(tmp_path_factory):
    """Nine labelled images that are in no other tar."""
    images = {f"{n}": image(n) for n in range(100, 109)}
    labels = {f"{n}": n % 4 for n in range(100, 109)}
    return write_tar(tmp_path_factory.mktemp("test") / "test.tar", images, labels)


def test_run_and_export_see_labelled_tars_as_centre_crops(tars, run, test_tar, tmp_path):
    state = load_file(run / "student.safetensors")
    bank = student_tokens(state, [centre(image(n)) for n in range(24)])
    queries = student_tokens(state, [centre(image(n)) for n in range(100, 109)])
    scores = expected(bank, torch.arange(24) % 4, queries, torch.arange(100, 109) % 4)
    data = ("--shards", tars, "--test-shards", test_tar)
    assert judged(tmp_path, "--run", run, *data) == (24, 9, scores)
    exported = ("--model", f"timm:local-dir:{run / 'student'}", "--image-size", 64)
    assert judged(tmp_path, *exported, *data) == (24, 9, scores)


def test_a_teacher_by_its_last_block_after_its_final_norm(cache, test_tar, tmp_path):
    teacher = load_teacher(TEACHER, image_size=64, patch_size=16, levels="1")

    def tokens(pixels):
        with torch.inference_mode():
            images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
            mean, std = (
                torch.tensor(values).view(3, 1, 1) for values in (teacher.facts.mean, teacher.facts.std)
            )
            return teacher.tower.module.forward_features((images - mean) / std)

    pixels, labels, _ = cached_pixels(cache)
    queries = tokens([centre(image(n)) for n in range(100, 109)])
    scores = (48, 9, expected(tokens(pixels), labels, queries, torch.arange(100, 109) % 4))
    arguments = ("--cache", cache, "--test-shards", test_tar)
    assert judged(tmp_path, "--teacher", TEACHER, *arguments) == scores
    assert judged(tmp_path, "--model", TEACHER.removeprefix("timm:"), *arguments) == scores


def test_without_cls_the_patches_alone_are_judged(cache, recipe, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(
        recipe.read_text().replace("num_heads = 2", "num_heads = 2, class_token = false, global_pool = 'avg'")
    )
    assert judged(tmp_path, "--untrained", "--config", file, "--cache", cache)[2].keys() == {"mean"}


def test_a_score_is_noted_in_the_run_with_step_and_digest(cache, run, test_tar, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("scores.json"))
    arguments = ("--cache", cache, "--test-shards", test_tar)
    knn("--run", copy, *arguments)
    student, own = read_scores(copy), read_compared(copy).scores
    assert len(own) == 2
    knn("--teacher", TEACHER, *arguments, "--report", copy)
    scores = read_scores(copy)
    assert [(score.subject.kind, score.representation) for score in scores] == [
        ("run", "cls"), ("run", "mean"), ("teacher", "cls"), ("teacher", "mean"),
    ]  # fmt: skip
    assert (scores[0].subject.step, scores[0].subject.weights) == (2, student_digest(copy))
    assert len({score.conditions for score in scores}) == 1
    who = student[0].subject.model_copy(update={"kind": "untrained", "weights": "untrained"})
    changes = {"subject": who, "metrics": {"top-1": 0.01}}
    add_scores(copy, [score.model_copy(update=changes) for score in student])
    assert read_compared(copy).scores == own  # of the student alone, though the conditions are the same
    knn("--run", copy, *arguments)
    assert len(read_scores(copy)) == 6
    knn("--run", copy, *arguments, "--set", "shared_keys=allow")
    assert len(read_scores(copy)) == 8
    assert "student, step 2" in (copy / "report.html").read_text(encoding="utf-8")


def test_a_score_says_if_the_network_has_other_patches(tars, run, test_tar, tmp_path):
    write_clip(tmp_path / "clip")
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("scores.json"))
    teacher = ("--teacher", f"open_clip:local-dir:{tmp_path / 'clip'}", "--image-size", 64)
    for sizes in ((), ("--patch-size", 16)):
        knn(*teacher, "--report", copy, "--shards", tars, "--test-shards", test_tar, *sizes)
    scores = [score for score in read_scores(copy) if score.representation == "mean"]
    assert [(one.subject.patch_size, one.subject.input_size) for one in scores] == [(8, 64), (16, 32)]
    assert (scores[0].notes, scores[0].test.image_size) == ((), 64)
    assert scores[1].notes == (
        "images of 64 pixels were resized to 32 after the crop, since the network's patches have 8 pixels "
        "and not 16; to compare with published scores give --shards and --patch-size 8",
    )


def test_images_that_are_left_out_are_reported(cache, run, tmp_path):
    images = {f"{n}": image(n) for n in range(8)} | {"bad": b"no image"}
    tar = write_tar(tmp_path / "a.tar", images, {f"{n}": n % 4 for n in range(6)} | {"bad": 0})
    result = knn("--run", run, "--cache", cache, "--test-shards", tar)
    assert result.exit_code == 0
    assert "6 images of 4 classes, 48 to learn from" in result.stdout
    assert (
        f"warning: 2 unlabelled of 8 images of {tar} are left out; the first: a.tar/6 has no .cls"
        in result.stderr
    )
    assert f"warning: 1 damaged of 7 images of {tar} are left out; the first: a.tar/bad " in result.stderr


TOGETHER = """
knn
    give one to evaluate: --run, --untrained with --run or --config, --teacher or --model
knn --run {run} --teacher {teacher}
    give one to evaluate
knn --untrained --teacher {teacher}
    give one to evaluate
knn --run {run} --config {recipe}
    --config is for an untrained student without a run
knn --teacher {teacher} --config {recipe}
    --config is for an untrained student without a
knn --run {run} --shards {tars}
    give the data to learn from either as --cache DIR or as
knn --untrained --config none.toml
    configuration file 'none.toml' does not exist
knn --teacher timm:resnet18
    is a ResNet, not a plain ViT
knn --model open_clip:ViT-B-16/openai
    does not name a model of timm: give NAME or
knn --model timm:vit_smal_patch16_224
    model 'timm:vit_smal_patch16_224' is not a model of timm
knn --model local-dir:none
    give a folder with config.json and model.safetensors
knn --run {run} --test-shards none.tar
    shard 'none.tar' does not exist
knn --run {run} --test-shards {tars}
    24 keys are in the data to learn from and in the test data
knn --run {run} --set k=49
    k is 49: only 46 views of the bank may vote for each image
knn --run {run} --set neighbours=3
    unknown configuration key 'neighbours': known are
knn --run caf\udce9
    --run 'caf\\udce9' has a name that is not UTF-8: rename it
knn --run {run} --out caf\udce9.json
    caf\\udce9.json' has a name that is not UTF-8
knn --run {run} --features \udce9
    --features '\\udce9' has a name that is not
knn --model local-dir:\udce9
    model 'timm:local-dir:\\udce9' has a name that is not UTF-8
knn --run {run} --report {tars}
    --report differs from --run
knn --run {run} --out none/a.json
    --out 'none/a.json': its folder does not exist
knn --run {run} --out /proc/a.json
    --out '/proc/a.json': its folder does not exist or is
knn --run {run} --out a.html
    --out 'a.html': scores are JSON; give a name
knn --run {run} --out {long}.json
    .json' has a name of more than 220 bytes: shorten
knn --run {run} --out {run}/run.json
    run.json' exists and holds no scores: choose another
knn --model test_vit.random --out {run}/scores.json
    scores of a run, and would replace all
knn --run {run} --features {recipe}
    recipe.toml' is a file: give a folder
knn --model test_vit.random --out {recipe}.json
    recipe.toml.json': plots and checkpoints would go to the folder
knn --run {run} --features none/f
    --features 'none/f': its folder does not
knn --run {run} --test-shards nothere
    'nothere' does not exist: give labelled
"""
WITHOUT_EFFECT = """
attention --shards {tars} --test-shards {tars}
    --test-shards has no effect on attention: it
zero-shot,attention --shards {tars} --test-shards {tars}
    effect on zero-shot and attention
attention --shards {tars} --class-names {names}
    --class-names has no effect on attention
segment --shards {tars} --image-size 32
    on segment: give --set size=PIXELS
detect --shards {tars} --image-size 32
    on detect: give --set image_size=PIXELS
finetune --shards {tars} --features .
    --features has no effect on finetune
export --shards {tars}
    --shards has no effect on export: it needs no data
export --out a.json
    --out has no effect on export: it has no scores
knn --shards {tars} --patch-size 8
    --patch-size is 8, but the run has patches of 16
knn --shards {tars} --set tries=3
    tries is 3, but all would learn from the same images
probe --shards {tars} --set tries=3
    tries is 3, but all would learn from the same
detect --shards {tars} --set drop_path=0.2
    drop_path is for an encoder that is trained
"""


def answers_but(lines, *more, **places):
    """The lines, filled with places, that are not refused with exit code 2 and the sentence below them."""
    found = [
        (line, call(app, *line.format(teacher=TEACHER, **places).split(), *more), part)
        for line, part in cases(lines)
    ]
    return [
        (line, result.output)
        for line, result, part in found
        if result.exit_code != 2 or not result.stderr.startswith("error: ") or part not in result.stderr
    ]


def test_options_that_do_not_go_together_exit_2(cache, tars, run, recipe):
    places = {"run": run, "recipe": recipe, "tars": tars, "long": "o" * 216}
    more = ("--cache", cache)
    assert answers_but(TOGETHER, *more, **places) == []


def test_options_without_effect_are_refused_by_name(run, tars, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\n")
    assert answers_but(WITHOUT_EFFECT, "--run", run, "--device", "cpu", tars=tars, names=names) == []


@pytest.mark.parametrize("name", ["knn", "attention", "segment"])
def test_weights_that_are_not_finite_are_refused(run, tars, tmp_path, name):
    copy = shutil.copytree(run, tmp_path / "run")
    weights = load_file(copy / "student.safetensors")
    save_file(weights | {"blocks.1.norm1.weight": torch.full((32,), torch.nan)}, copy / "student.safetensors")
    data = ("--run", copy, "--shards", tars, *(("--test-shards", tars) if name == "segment" else ()))
    result = call(app, name, *data, "--device", "cpu", code=1)
    assert "the weights 'blocks.1.norm1.weight' of 'student' are not finite" in result.stderr


def test_class_names_without_a_name_are_refused(cache, run, tmp_path):
    file = tmp_path / "names.json"
    for second in ("5", '""', r'"\ud800"', r'"\u001b[31m"', '{"id": 1}'):
        file.write_text(f'["a", {second}]')
        result = knn("--run", run, "--cache", cache, "--class-names", file)
        assert result.exit_code == 2
        assert "has no printable name for class 1: give one for each from 0 on" in result.stderr


def test_a_pattern_without_quotes_is_refused_with_the_remedy():
    result = call(app, "knn", "--model", "test_vit.random", "--shards", "a.tar", "b.tar", "c.tar", code=2)
    remedy = "for several repeat --shards or --test-shards or --set, or quote a pattern"
    message = f"Error: Invalid value: 'b.tar' belongs to no option: give each one value; {remedy}"
    assert " ".join(result.stderr.split()).endswith(message)


def test_an_unknown_evaluation_names_those_there_are():
    result = call(app, "kn", "--print-config", code=2)
    assert result.stderr.startswith("error: evaluation 'kn' is unknown: give one of ")
    assert {"knn", "attention"} <= set(result.stderr.strip().partition("give one of ")[2].split(", "))


@pytest.mark.faults
def test_scores_are_kept_if_a_later_evaluation_fails_or_nobody_reads(cache, run, test_tar, tmp_path):
    out = tmp_path / "a.json"
    data = ("--run", run, "--cache", cache, "--test-shards", test_tar, "--out", out, "--workers", 0)
    words = [*data, "--device", "cpu", "--set", "knn.k=3"]
    assert "zero-shot reads the names" in call(app, "knn,zero-shot", *words, code=2).stderr
    assert [score["evaluation"] for score in json.loads(out.read_text())] == ["knn", "knn"]
    out.unlink()
    words = [sys.executable, "-m", "stages.evaluate_student", "knn", *data, "--device", "cpu", "--set", "k=3"]
    with subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout.readline().startswith("knn of ")  # as `head -1` does
        command.stdout.close()
    assert (command.returncode, out.exists()) == (1, True)


def test_several_evaluations_in_one_command(cache, run, test_tar, tmp_path):
    names = "knn,robustness"
    own = ("knn.k=3", "robustness.k=3", "robustness.severities=[1]", 'robustness.corruptions=["blur"]')
    arguments = [word for one in own for word in ("--set", one)]
    data = ("--run", run, "--cache", cache, "--test-shards", test_tar, "--report", run, "--workers", 0)
    result = call(app, names, *data, *arguments, "--device", "cpu", "--out", tmp_path / "a.json", code=0)
    assert (result.stdout.count("; chance "), "chance 0" in result.stdout) == (
        1,
        False,
    )  # robustness has none
    scores = json.loads((tmp_path / "a.json").read_text())
    assert [score["evaluation"] for score in scores] == ["knn", "knn", "robustness"]
    assert (tmp_path / "a.html").exists()
    wrong = call(app, names, "--run", run, "--print-config", "--set", "k=3", code=2)
    assert (
        "--set 'k=3' does not say which of knn, robustness it is for: give it as --set knn.k=3"
        in wrong.stderr
    )


@pytest.mark.parametrize(
    ("evaluation", "options", "names"),
    [
        ("probe", ["few=2", "tries=2", "c=[0.1, 1.0]"], ["cls", "mean"]),
        ("probe", ["kind=grid", "epochs=1", "lr=[0.1, 1.0]"], ["cls", "cls+mean"]),
        ("probe", ["kind=published", "epochs=1"], ["cls"]),
        ("attentive", ["epochs=1", "lr=1.0"], ["cls+patches"]),
        ("attentive", ["kind=capi", "epochs=1", "lr=[1e-3, 1e-2]", "weight_decay=0.05"], ["cls+patches"]),
    ],
    ids=["few labels", "grid", "published", "efficient", "capi"],
)
def test_probes_learn_from_tars_or_a_cache(cache, tars, run, test_tar, tmp_path, evaluation, options, names):
    settings = [part for option in options for part in ("--set", option)]
    data = ["--cache", cache] if "few=2" in options else ["--shards", tars]
    result_file = tmp_path / "result.json"
    arguments = [*data, "--test-shards", test_tar, "--out", result_file, *settings, *SETTINGS[2:]]
    result = call(app, evaluation, "--run", run, *arguments, code=0)
    assert ("to learn from (few=2 of each class); chance" in result.stdout) == ("few=2" in options)
    scores = json.loads(result_file.read_text())
    assert [score["representation"] for score in scores] == names
    assert {score["test"]["images"] for score in scores} == {9}
    page = (tmp_path / "result.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == len(scores[0]["plots"]) == (evaluation == "attentive")


def test_heads_on_crops_refuse_the_views_of_a_cache(cache, run, test_tar):
    for evaluation, option in (("probe", "kind=grid"), ("attentive", "epochs=1")):
        arguments = ["--run", run, "--cache", cache, "--test-shards", test_tar, "--set", option]
        result = call(app, evaluation, *arguments, code=2)
        assert result.stderr.startswith(f"error: {evaluation} cuts its own crops, which views of a cache do")


def test_print_config_prints_the_keys_of_an_evaluation():
    result = call(app, "knn", "--print-config", "--set", "k=5")
    assert result.stdout.startswith('k = [5]\ntemperature = [0.07]\nrepresentations = ["cls", "mean"]\n')


def test_data_to_learn_from_must_be_given(run):
    result = knn("--run", run)
    assert result.exit_code == 2
    assert "give the data to learn from either as --cache DIR or as --shards SHARDS" in result.stderr


def refused(*arguments, code=1):
    result = knn(*arguments)
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_run_that_is_unfinished_exits_1(cache, run, tmp_path):
    part = tmp_path / "part"
    part.mkdir()
    shutil.copy(run / "run.json", part)
    assert "student.safetensors' cannot be loaded (" in (message := refused("--run", part, "--cache", cache))
    assert message.endswith("finish the run, with --resume if it stopped\n")
    (part / "student.safetensors").write_bytes((run / "student.safetensors").read_bytes()[:5000])
    assert "student.safetensors' cannot be loaded (" in refused("--run", part, "--cache", cache)


def test_a_cache_of_other_sizes_than_the_runs_is_refused(run, tmp_path):
    other = caches.real(tmp_path, tars=1, images_per_tar=4, image_size=32, patch_size=8, views=1)
    result = knn("--run", run, "--cache", other)
    assert result.exit_code == 2
    assert "views of 64 pixels in patches of 16 are needed, but cache " in result.stderr
    assert "has 32 in 8: give a cache of these sizes, or --shards" in result.stderr


@contextmanager
def read_only(folder):
    """Make a folder read-only, even for root: the process gives up CAP_DAC_OVERRIDE inside."""
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] &= ~(1 << 1)
    folder.chmod(0o555)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0
        folder.chmod(0o755)


def test_a_read_only_run_is_refused_unless_out_gets_its_scores(cache, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    with read_only(copy):
        result = knn("--run", copy, "--cache", cache)
        assert result.exit_code == 2
        assert "gets scores, report and features, but is not writable: give --out FILE" in result.stderr
        result = knn("--run", copy, "--cache", cache, "--out", tmp_path / "a.json")
        assert result.exit_code == 0
        assert "is read-only, and its scores stay as they are" in result.stderr
    assert len(json.loads((tmp_path / "a.json").read_text())) == 2
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before


def test_an_evaluation_of_one_process_is_refused_under_torchrun(run, test_tar, monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    result = knn("--run", run, "--shards", test_tar)
    assert result.exit_code == 2
    assert result.stderr == (
        "error: evaluation 'knn' runs in one process, not in 2: start it without torchrun, srun or mpirun\n"
    )


def test_scores_that_cannot_be_read_are_refused_before_any_work(cache, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "scores.json").write_text("[{}]")
    message = refused("--run", copy, "--cache", cache)
    assert "scores.json' is not a list of scores: an earlier version may have" in message


@pytest.mark.faults  # too slow for every run
def test_worker_processes_accept_a_long_tmpdir_and_few_open_files(tmp_path):
    temporary = tmp_path / ("t" * 100)
    temporary.mkdir()
    write_tar(tmp_path / "a.tar", {str(number): image(number % 9, 32, 32) for number in range(300)})
    images = tmp_path / "a.tar"
    words = ["--shards", images, "--test-shards", images, "--model", "test_vit.random", "--image-size", 64]
    sets = ["knn.shared_keys=allow", "finetune.shared_keys=allow", "finetune.epochs=1", "finetune.lr=0.001"]
    words += ["--batch-size", 300, "--workers", 1, "--device", "cpu"]
    ((code, output, errors),), _ = call_alone(
        ["evaluate_student", "knn,finetune", *words, *(word for one in sets for word in ("--set", one))],
        env=os.environ | {"TMPDIR": str(temporary)},
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)),
    )
    assert code == 0, errors
    assert output.count("300 images of 4 classes") == 2


@pytest.mark.faults  # too slow for every run
def test_a_stop_says_whether_the_command_can_continue(test_tar, tmp_path):
    """Without a place that stays, a repeated command starts again."""
    command = [
        sys.executable,
        "-u",
        "-m",
        "stages.evaluate_student",
        "finetune",
        "--model",
        "test_vit.random",
    ]
    data = [
        "--shards",
        test_tar,
        "--test-shards",
        test_tar,
        "--set",
        "shared_keys=allow",
        "--set",
        "lr=0.001",
    ]
    sizes = ["--image-size", "64", "--workers", "0", "--set", "epochs=100000", "--device", "cpu"]

    def stopped(*where):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([*map(str, (*command, *data, *sizes, *where))], **pipes) as run:
            assert run.stdout.readline().startswith("finetune of timm:test_vit.random")
            run.terminate()
            return run.communicate()[1]

    assert "nothing was kept; with --out FILE.json" in stopped()
    assert "run the same command again to continue" in stopped("--out", tmp_path / "a.json")
