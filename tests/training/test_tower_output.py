"""Normed and projected targets of a cache against what open_clip's own forward pass returns."""

import pytest
import torch
from caches import real
from tiny_clip import load_clip, write_clip

from pipeline.cache.encoding import error_bound
from pipeline.cache.join import decode_crops, read_joined
from pipeline.cache.layout import feature_array
from pipeline.cache.reader import Cache
from pipeline.teacher.geometry import teacher_images
from pipeline.training.targets import cached_targets, teacher_output

LAST, ROWS = 2, 20
RAW = {"image_size": 32, "patch_size": 8, "levels": f"{LAST},", "view_format": "raw"}


def stored_and_own(folder, encoding):
    """A cache, its one batch, and the tower's own patches after the norm and tokens after the projection."""
    visual = write_clip(folder / "clip").visual.eval()
    spec = f"open_clip:local-dir:{folder / 'clip'}"
    cache = Cache(real(folder, 1, ROWS, views=1, teacher=spec, encoding=encoding, **RAW))
    (unit,), name = cache.finished(None, allow_partial=False), feature_array(LAST)
    joined = read_joined(cache, cache.pinned_commit(unit), 0, [name, "stats"])
    codes, stats = (torch.from_numpy(joined.arrays[key]) for key in (name, "stats"))
    facts, crops = load_clip(folder / "clip").facts, torch.from_numpy(decode_crops(cache, joined, ROWS))
    visual.output_tokens = True
    with torch.no_grad():  # open_clip returns CLS after the projection, and patches before it
        cls, normed = visual(teacher_images(crops, facts.input_size, facts.mean, facts.std))
        projected = torch.cat([cls[:, None], normed @ visual.proj], dim=1)
    return cache, {"visible_codes": codes[:, None], "visible_stats": stats}, normed, projected


@pytest.mark.parametrize(("encoding", "tolerance"), [("float16", 1e-3), ("int8", 0.02)])
def test_targets_are_the_output_of_the_tower(tmp_path, encoding, tolerance):
    cache, batch, normed, projected = stored_and_own(tmp_path, encoding)
    output, std = teacher_output(cache, "projected"), torch.from_numpy(cache.calibration()[1])
    targets = cached_targets(cache, (0,), "projected")
    whitened, _, deviation = targets.decoder(batch["visible_codes"], batch["visible_stats"])
    bound = error_bound(whitened, batch["visible_stats"], std, encoding)[:, 0] * output.post_norm[0].abs()
    found = output(whitened, deviation, projected=False)[:, 0]
    for ours, theirs, largest in (
        (found[:, 1:], normed, bound[:, 1:]),
        (targets(batch).visible[0], projected, bound @ output.projection.abs()),
    ):
        error = ours - theirs
        assert (error.abs() <= largest + 1e-5).all()
        assert (error.norm(dim=-1) <= tolerance * theirs.norm(dim=-1)).all()
