"""A compiled teacher is one graph, importance included, and gives what the eager one gives."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from tiny_clip import load_clip, own_teacher, peaky, write_clip

from pipeline.runtime.device import compiled
from pipeline.teacher.load import load_teacher

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 0}


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()


def pooled_by_a_query():
    model = VisionTransformer(**SHAPE, class_token=False, global_pool="map")
    return own_teacher(peaky(model), levels=(0, 1))


def clip(folder, **changes):
    write_clip(folder, **changes)
    return load_clip(folder, image_size=40)


TEACHERS = {
    "clip": clip,
    "normed queries": lambda folder: clip(folder, qk_norm=True),
    "attention pool": lambda folder: clip(
        folder, attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2
    ),
    "timm": lambda _: load_teacher("timm:test_vit.random", image_size=40, patch_size=8, levels="3"),
    "no importance": lambda _: load_teacher("timm:test_vit2.random", image_size=40, patch_size=8, levels="3"),
    "query": lambda _: pooled_by_a_query(),
}


def assert_close(found, expected):
    """Compare features within the rounding of float32."""
    for ours, theirs in zip(found.hidden, expected.hidden, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.importance, expected.importance, rtol=1e-4, atol=1e-6)


@pytest.mark.bench
@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_is_one_graph_for_all_batches_of_a_size(tmp_path, pixels, name):
    teacher = TEACHERS[name](tmp_path / "clip")
    graphs = []

    def note(graph, _inputs):
        graphs.append(graph)
        return graph

    features, batches = compiled(teacher.features), (pixels, pixels.flip(0))
    with torch.compiler.set_stance(force_backend=note), torch.inference_mode():
        found = [features(batch) for batch in batches]
    assert len(graphs) == 1
    for ours, batch in zip(found, batches, strict=True):
        assert_close(ours, teacher.features(batch))
