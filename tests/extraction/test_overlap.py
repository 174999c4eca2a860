"""The teacher never waits for the end of a tar, and no tar waits for a lane that stands still."""

from caches import extract, extraction_options
from tars import make_tars

from pipeline.extraction.encode import FeatureEncoder
from pipeline.extraction.extractor import Extractor
from pipeline.extraction.job import build_teacher, prepare_cache
from pipeline.extraction.origin import FromTars
from pipeline.views.decoder import Decoder


class Noted(FeatureEncoder):
    """Notes the first key of each batch that is launched or collected."""

    calls = ()

    def launch(self, pixels, keys, unit):
        self.calls += (("launch", keys[0]),)
        return super().launch(pixels, keys, unit)

    def collect(self, batch):
        self.calls += (("collect", batch.keys[0]),)
        return super().collect(batch)


def observed(cache, tars, **changes):
    """Run an extraction; return the encoder's calls, and how many tars were open after each."""
    options = extraction_options(cache=cache, shards=tars, **changes)
    teacher, decoder = build_teacher(options), Decoder(0, 64)
    made, units = prepare_cache(options, teacher, decoder, FromTars(options))
    encoder = Noted(teacher, *made.calibration(), made.schema, options.device, options.batch_size)
    extractor, is_open = Extractor(made.folder, made.schema, FromTars(options), encoder, decoder, 0.01), []
    hook = teacher.tower.module.patch_embed.register_forward_hook(
        lambda *_: is_open.append(len(extractor._open))
    )
    extractor.run(tars, units)
    hook.remove()
    assert extractor.tally.failed == {}
    return encoder.calls, is_open


def test_the_teacher_continues_from_one_tar_to_the_next(tmp_path):
    """The last batch of a tar is collected when the first one of the next has been launched."""
    calls, _ = observed(
        tmp_path / "a.cache", make_tars(tmp_path, tars=2, images_per_tar=40), views=1, batch_size=16
    )
    assert calls.index(("launch", "000040")) < calls.index(("collect", "000032"))


def test_tars_that_lack_fewer_views_do_not_pile_up(tmp_path):
    tars = make_tars(tmp_path, tars=8, images_per_tar=4)
    extract(tmp_path / "a.cache", tars[1:], views=1)
    calls, is_open = observed(tmp_path / "a.cache", tars, views=2)
    assert [key for call, key in calls if call == "launch"].count("000000") == 2
    assert max(is_open) <= 3
