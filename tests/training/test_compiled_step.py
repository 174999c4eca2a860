"""The step compiles as one graph, once for a whole run, and asks nothing of the device."""

import dataclasses

import pytest
import torch
from functorch.compile import nop
from safetensors.torch import load_file
from student_fixtures import encode_images
from torch import distributed
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import SkipFrame
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import CPU, TINY, losses, tiny_job, trained

from pipeline.cache.encoding import TargetDecoder
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.objectives.losses import distance
from pipeline.objectives.needs import VISIBLE_ALONE
from pipeline.objectives.objective import Setting, TrainingStep
from pipeline.stream.batches import BatchStream
from pipeline.training.codebook import unfitted_tokenizer
from pipeline.training.config import RunConfig
from pipeline.training.job import describe_job, shared_by_ranks
from pipeline.training.precision import choose_compilation, choose_precision
from pipeline.training.run import load_newest, run_job
from pipeline.training.sections import TrainConfig
from pipeline.training.targets import CachedTargets, TeacherOutput
from pipeline.training.trainer import Trainer

BATCH, VISIBLE, PATCH_PIXELS, PATCHES = 2, 4, 192, 16
SIZE = "student.options={{depth={depth}, embed_dim=32, num_heads=2{more}}}"
SHALLOW = SIZE.format(depth=1, more="")
DEEP = SIZE.format(depth=2, more="")  # a first block drops no path
NO_CLS = SIZE.format(depth=1, more=', class_token=false, global_pool="avg"')
REGISTERS = SIZE.format(depth=1, more=", reg_tokens=2")
CODES = "objective.codebook_size=30"
DECODER = "objective.decoder_depth=1"
WAITING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()


def tiny_step(*settings, encoding="int8", has_cls=True):
    """Build a step of these settings; returns it and its batch."""
    tiny = (
        [each for each in TINY if not each.startswith("mask.")] if "objective.name=fd" in settings else TINY
    )
    config = load_config(RunConfig, None, [*tiny, *settings])
    setting, request = Setting(32, 8, (1, 3), 4, 70, has_cls, 20), config.objective.codebook_request
    if request:
        setting = dataclasses.replace(setting, tokenizer=unfitted_tokenizer(request, setting))
    visible = VISIBLE if config.objective.masked else PATCHES
    decoder = TargetDecoder(torch.zeros(2, 70), torch.ones(2, 70), encoding)
    output = TeacherOutput(torch.ones(2, 70), projection=torch.ones(70, 20))
    targets = CachedTargets(decoder, config.objective.needs.target, output)
    step = TrainingStep(config.objective.build(config.student, setting), targets)
    return step, stored_batch(encoding, visible, has_cls, config.objective.needs)


def stored_batch(encoding, visible=VISIBLE, has_cls=True, needs=VISIBLE_ALONE):
    """A batch as the stream gives it, of a teacher 70 channels wide and two levels."""
    width, dtype = {"int8": (70, torch.int8), "int4": (35, torch.uint8), "float16": (70, torch.float16)}[
        encoding
    ]
    numbers, pixels = torch.rand(BATCH, PATCHES).argsort(1), visible if needs.pixels == "visible" else PATCHES
    batch = {
        "patches": torch.zeros(BATCH, pixels, PATCH_PIXELS, dtype=torch.uint8),
        "visible": numbers[:, :visible],
    }
    if needs.positions:
        batch["hidden"] = numbers[:, visible:]
    tokens = {"visible": visible + has_cls, "hidden": PATCHES - visible}
    for part, levels in needs.targets((0, 1)).items():
        shape = (BATCH, len(levels), tokens[part])
        batch[f"{part}_codes"] = torch.randint(0, 8, (*shape, width)).to(dtype)
        batch[f"{part}_stats"] = torch.rand(*shape, 4).half()
    return batch


CASES = {  # settings, and facts of the cache
    "layerwise": (("mode='layerwise'", "head='mlp'", "loss='cosine'", DEEP), "int4"),
    "registers": (("loss='l1'", "target='l2'", REGISTERS), "float16"),
    "fd": (("name=fd",), "int8"),
    "mae": (("name=mae", DECODER), "int8"),
    "milan": (("name=milan", "preset=published", DECODER), "int4"),
    "combined": (("name=combined", DECODER), "int8"),
    "maskdistill": (("name=maskdistill", "preset=eva"), "int8"),
    "beit": (("name=beit", CODES, "codes=pixels", REGISTERS), "without CLS"),
    "beit2": (("name=beit2", CODES, "preset=published", "student.drop_path=0.5", DEEP), "int8"),
    "cae": (("name=cae", "regressor_depth=1", DECODER, CODES), "int8"),
}
MORE_CASES = {
    "uniform, no CLS": (("mode='uniform'", "loss='l2'", "target='none'", NO_CLS), "int8"),
    "drop path": (("head='norm_linear'", "student.drop_path=0.5", DEEP), "without CLS"),
    "milan, visible": (("name=milan", "positions=visible"), "without CLS"),
    "combined, pixels": (("name=combined", "reconstruct=pixels", DECODER), "int8"),
    "beit, features": (("name=beit", CODES, "student.drop_path=0.5", DEEP), "int8"),
    "cae, teacher": (("name=cae", "regressor_depth=1", "align=teacher", DECODER, CODES), "int8"),
}


@pytest.mark.parametrize(
    "name", [*CASES, *(pytest.param(name, marks=pytest.mark.faults) for name in MORE_CASES)]
)
def test_every_step_is_one_graph(name):
    changes, cache = (CASES | MORE_CASES)[name]
    settings = [
        each if each.startswith(("student.", "objective.")) else f"objective.{each}" for each in changes
    ]
    facts = {"has_cls": False} if cache == "without CLS" else {"encoding": cache}
    (step, batch), graphs = tiny_step(SHALLOW, *settings, **facts), []
    step.compile(backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True, dynamic=False)
    for _ in range(2):
        step(batch)[0].backward()
    assert len(graphs) == 1


@pytest.mark.parametrize(("kind", "target"), [("smooth_l1", "whiten"), ("l2", "none")])
def test_neither_targets_nor_differences_are_kept_for_the_backward_pass(kind, target):
    """Predictions in half precision and stored codes are kept: decoding again is cheaper than float32."""
    targets = CachedTargets(TargetDecoder(torch.zeros(2, 70), torch.ones(2, 70), "int8"), target)
    batch = stored_batch("int8")
    predictions = [torch.randn(BATCH, 5, 70, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
    kept = []

    def loss(predictions, batch):
        return sum(distance(*pair, kind) for pair in zip(predictions, targets(batch).visible, strict=True))

    compiled = torch.compile(loss, backend="aot_eager_decomp_partition", fullgraph=True, dynamic=False)
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        compiled(predictions, batch)
    assert {tensor.dtype for tensor in kept if tensor.numel() >= predictions[0].numel()} <= {
        torch.bfloat16,
        torch.int8,
    }
    assert kept


def test_a_run_compiles_once_through_accumulation_evaluation_and_resume(small_cache_path, tmp_path):
    changes = ("train.compile=true", "train.accumulate=2", "student.drop_path=0.5", "optim.steps=10")
    job, graphs = tiny_job(small_cache_path, tmp_path / "run", *changes), []  # 8 steps are an epoch
    job.run.mkdir()

    def evaluate(*_):
        job.objective.encoder.eval()
        with torch.no_grad():
            encode_images(job.objective.encoder, torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
        job.objective.train()

    job.optimiser.register_step_post_hook(evaluate)
    backend = torch.compiler.set_stance(force_backend=lambda graph, _: graphs.append(graph) or graph)
    with backend, torch._dynamo.config.patch(error_on_recompile=True):
        assert run_job(job, 0)[0] == 10
        assert load_newest(job) == 10
    assert len(graphs) == 1


@pytest.fixture
def _one_rank():
    """A process group of one rank."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.faults  # too slow for every run
@pytest.mark.usefixtures("_one_rank")
@pytest.mark.parametrize("name", ["beit", "cae"])
def test_codes_compile_under_ddp_with_an_eager_steps_gradients(name):
    """The compiler splits a step between gradient buckets, which breaks some losses in parts."""
    wide = ("student.options={depth=2, embed_dim=192, num_heads=2}", "student.drop_path=0.0")
    (step, batch), graphs = tiny_step(f"objective.name={name}", CODES, *wide), []
    step(batch)[0].backward()
    expected = {name: parameter.grad for name, parameter in step.named_parameters()}
    step.zero_grad()
    step.compile(backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True, dynamic=False)
    DistributedDataParallel(step, bucket_cap_mb=1)(batch)[0].backward()
    assert len(graphs) > 1
    for parameter, gradient in expected.items():
        torch.testing.assert_close(step.get_parameter(parameter).grad, gradient)


@pytest.mark.bench
@pytest.mark.usefixtures("_one_rank")
def test_under_ddp_the_step_of_vit_b_is_five_graphs():
    """torch cuts the graph at gradient buckets; its default of 25 MB would cut ViT-B's 338 MiB into 14."""
    config, graphs = RunConfig(), []
    objective = config.objective.build(config.student, Setting(224, 16, (7, 8, 9, 10, 11), 12, 768, True))
    targets = CachedTargets(TargetDecoder(torch.zeros(5, 768), torch.ones(5, 768), "int8"), "whiten")
    step = TrainingStep(objective, targets)
    step.compile(backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True, dynamic=False)
    codes, stats = (
        torch.zeros(2, 5, 60, 768, dtype=torch.int8),
        torch.ones(2, 5, 60, 2 + 768 // 64).half(),
    )
    batch = {
        "patches": torch.zeros(2, 59, 768, dtype=torch.uint8),
        "visible": torch.arange(59).expand(2, 59),
    }
    shared_by_ranks(step, CPU)(batch | {"visible_codes": codes, "visible_stats": stats})[0].backward()
    assert len(graphs) == 5


@pytest.mark.bench
def test_a_compiled_run_is_the_eager_one(small_cache_path, tmp_path):
    """Compiled as for a GPU, without code generation: the backward pass computes some parts again."""
    options = "student.options={depth=1, embed_dim=32, num_heads=2}"
    changes = ("student.drop_path=0.0", "optim.base_lr=0.001", options)
    eager = trained(small_cache_path, tmp_path / "eager", *changes)
    with torch.compiler.set_stance(force_backend="aot_eager_decomp_partition"):
        compiled = trained(small_cache_path, tmp_path / "compiled", *changes, "train.compile=true")
    for ours, theirs in zip(losses(compiled), losses(eager), strict=True):
        assert ours["loss_terms"] == pytest.approx(theirs["loss_terms"], rel=1e-4)
    found, expected = (load_file(run / "student.safetensors") for run in (compiled, eager))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)


@pytest.mark.bench
def test_generated_code_gives_the_same_loss():
    """torch's own code generation for CPUs, at a width that ends within a group of channels."""
    targets = CachedTargets(TargetDecoder(torch.randn(2, 70), torch.ones(2, 70), "int8"), "none")
    batch, predictions = stored_batch("int8"), torch.randn(2, BATCH, 5, 70)

    def loss(predictions, batch):
        pairs = zip(predictions.unbind(0), targets(batch).visible, strict=True)
        return torch.stack([distance(*pair, "smooth_l1") for pair in pairs])

    compiled = torch.compile(loss, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(predictions, batch), loss(predictions, batch))


def test_a_step_that_cannot_be_one_graph_is_refused_with_the_remedy(small_cache_path, tmp_path):
    job = tiny_job(small_cache_path, tmp_path, "train.compile=true")
    job.objective.encoder.vit.norm_pre.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    cause = r"\(Unsupported: Call to `torch._dynamo.graph_break\(\)`\)"
    message = rf"^the training step cannot be compiled as one graph {cause}: set train\.compile=false"
    with pytest.raises(ConfigError, match=message):
        run_job(job, 0)


@pytest.mark.faults  # too slow for every run
def test_a_compiler_that_fails_backward_leaves_an_eager_step(small_cache_path, tmp_path):
    """As Inductor does for bfloat16 before Ampere, when it first sees the backward graph."""

    def fail(*_):
        raise SkipFrame("BF16 is not supported")

    backend, messages = aot_autograd(fw_compiler=nop, bw_compiler=fail), []
    job = dataclasses.replace(tiny_job(small_cache_path, tmp_path / "auto"), compiled=True)
    with torch.compiler.set_stance(force_backend=backend):
        job.run.mkdir()
        resolved = []
        done, _ = run_job(job, 0, messages.append, lambda: resolved.append(describe_job(job)["resolved"]))
        refused = tiny_job(small_cache_path, tmp_path / "refused", "train.compile=true")
        refused.run.mkdir()
        with pytest.raises(ConfigError, match=r"cannot be compiled as one graph .*BF16 is not supported"):
            run_job(refused, 0)
    assert (done, job.compiled) == (6, False)
    assert resolved == [{"train.precision": "float32", "train.compile": False, "data.lanes": 1}]
    assert [message.partition(" (")[0] for message in messages] == [
        "warning: the training step cannot be compiled"
    ]
    assert losses(job.run) == losses(trained(small_cache_path, tmp_path / "eager"))


@pytest.mark.parametrize(
    ("major", "precision", "compiled"),
    [(9, "bfloat16", True), (7, "float16", True), (6, "float32", False)],
)
def test_an_older_gpu_gets_what_it_can_compute(monkeypatch, major, precision, compiled):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    train, device = TrainConfig(), torch.device("cuda", 0)
    assert choose_precision(train, device) == precision
    assert choose_compilation(train, precision, device) is compiled
    assert choose_compilation(train, "bfloat16", device) is (major >= 8)
    assert choose_precision(TrainConfig(precision="float32"), device) == "float32"
    assert (choose_precision(train, CPU), choose_compilation(train, "float32", CPU)) == ("float32", False)


class NoWaiting(TorchDispatchMode):
    """Fails where the host would wait for a GPU: a value read from a tensor, or a shape set by values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in WAITING, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("optim.clip_grad=0.01",),
        ("train.accumulate=2", "train.precision='bfloat16'"),
        ("train.precision='float16'", "optim.clip_grad=0.01"),
    ],
)
def test_no_step_waits_for_the_device(small_cache_path, tmp_path, settings):
    job = tiny_job(small_cache_path, tmp_path, "student.drop_path=0.5", *settings)
    trainer = Trainer(job, job.build_step().train())
    with BatchStream(job.cache, job.spec, CPU, workers=0) as stream:
        batches = iter(stream)
        for step in range(2):
            batch = next(batches)
            with NoWaiting():
                trainer.step(batch, step)


@pytest.mark.parametrize(
    "waits", [lambda: torch.ones(1).item(), lambda: bool(torch.ones(1) > 0), lambda: torch.ones(2).nonzero()]
)
def test_what_waits_is_noticed(waits):
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        waits()
