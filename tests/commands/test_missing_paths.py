"""A path that does not exist is wrong use: each command refuses it by name with exit code 2."""

import pytest
from calls import call

from stages.bench import bench
from stages.compare_runs import compare_runs
from stages.evaluate_student import app as evaluate
from stages.extract_teacher import extract_teacher
from stages.inspect_cache import app as inspect
from stages.pack_images import pack_images
from stages.run_study import run_study
from stages.train_student import train_student

KNN = "knn --model test_vit.random"
TRAIN = "--cache {cache} --device cpu"
STUDY = "stages/studies/paradigms.toml --out {tmp}/out"
SMALL = "--set evaluations={{}} --set train.global_batch=8"
REUSE = f"{STUDY} --cache {{cache}} --reuse {{tmp}}/none --device cpu {SMALL}"
EXTRACT = "--cache {tmp}/out --teacher timm:test_vit.random --device cpu"
LINES = [
    (pack_images, "{tmp}/none {tmp}/out"),
    (extract_teacher, f"{{tmp}}/none.tar {EXTRACT}"),
    (extract_teacher, f"--views-from {{tmp}}/none {EXTRACT}"),
    (extract_teacher, "{tars} --cache {tmp}/out --teacher timm:local-dir:{tmp}/none --device cpu"),
    (train_student, "--cache {tmp}/none --run {tmp}/out"),
    (train_student, f"{TRAIN} --run {{tmp}}/none --resume"),
    (train_student, f"{TRAIN} --run {{tmp}}/out --config {{tmp}}/none"),
    (evaluate, "knn --run {tmp}/none --cache {cache}"),
    (evaluate, "knn --run {tmp}/none --untrained --cache {cache}"),
    (evaluate, "knn --untrained --config {tmp}/none --cache {cache}"),
    (evaluate, "knn --model local-dir:{tmp}/none --cache {cache} --device cpu"),
    (evaluate, "export --run {tmp}/none"),
    (evaluate, f"{KNN} --cache {{tmp}}/none"),
    (evaluate, f"{KNN} --shards {{tmp}}/none"),
    (evaluate, f"{KNN} --cache {{cache}} --test-shards {{tmp}}/none"),
    (evaluate, f"{KNN} --cache {{cache}} --class-names {{tmp}}/none"),
    (evaluate, f"{KNN} --cache {{cache}} --report {{tmp}}/none"),
    (evaluate, f"{KNN} --cache {{cache}} --out {{tmp}}/none/scores.json"),
    (inspect, "info {tmp}/none"),
    (inspect, "plan --cache {tmp}/none"),
    (inspect, "card {tmp}/none"),
    (inspect, "copy {tmp}/none {tmp}/out"),
    (inspect, "verify {tmp}/none"),
    (inspect, "verify --repair {tmp}/none"),
    (compare_runs, "{tmp}/none {tmp}/other --out {tmp}/out"),
    (run_study, "{tmp}/none --cache {cache} --out {tmp}/out"),
    (run_study, f"{STUDY} --cache {{tmp}}/none"),
    (run_study, f"{STUDY} --cache {{cache}} --test-shards {{tmp}}/none --device cpu"),
    (bench, "--quick --cache {tmp}/none"),
    (bench, "--quick --shards {tmp}/none.tar"),
    (bench, "--quick --json {tmp}/none/result.json"),
]


def test_it_is_refused(tars, cache, tmp_path):
    for command, line in LINES:
        result = call(command, *line.format(tmp=tmp_path, cache=cache, tars=tars).split())
        assert (result.exit_code, result.stdout) == (2, ""), line
        assert f"{tmp_path}/none" in result.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.mark.faults  # slow
def test_a_study_to_reuse_that_is_not_there_is_refused(cache, tmp_path):
    result = call(run_study, *REUSE.format(tmp=tmp_path, cache=cache).split(), code=2)
    assert f"{tmp_path}/none" in result.stderr
    assert list(tmp_path.iterdir()) == []
