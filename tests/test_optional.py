"""A damaged optional library gives an error of one sentence, wherever it is needed."""

import sys

import pytest
from caches import extraction_options

from pipeline.errors import ConfigError
from pipeline.evaluation.detection.regions import codec
from pipeline.evaluation.exporting.exported import library_of_format
from pipeline.extraction.engines import RayLimits, extract
from pipeline.packing.tables import table_source
from pipeline.storage.address import check_url


@pytest.mark.parametrize(
    ("library", "use", "needs"),
    [
        ("obstore", lambda: check_url("s3://bucket/a"), "address 's3://bucket/a' needs obstore"),
        (
            "pyarrow",
            lambda: table_source("parquet", "a.parquet", [], None, None),
            "'a.parquet' needs pyarrow",
        ),
        ("faster_coco_eval", codec, "detect needs faster-coco-eval"),
        (
            "ray",
            lambda: extract(extraction_options(cache="a", shards=[]), RayLimits(), print),
            "--engine ray needs ray",
        ),
        ("onnx", lambda: library_of_format("onnx", "onnx"), "this format needs onnx"),
    ],
)
def test_a_library_that_fails_on_import_gives_one_sentence(tmp_path, monkeypatch, library, use, needs):
    (tmp_path / f"{library}.py").write_text("raise TypeError('not for this\\nPython')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError) as error:
        use()
    wanted = f"{needs}, which cannot be imported (TypeError: not for this): install another version of it"
    assert str(error.value).removesuffix(", or give --set format=timm") == wanted
