"""What is printed of an address: never a password or a signature, and everything else."""

import pytest

from pipeline.errors import ConfigError, printable
from pipeline.storage.address import check_path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:SECRET@host/x.tar", "https://host/x.tar"),
        ("s3://me:SEC@RET@host/x.tar", "s3://host/x.tar"),
        ("s3://me:SEC'RET@host/x.tar", "s3://host/x.tar"),
        ("https://host/x.tar?X-Sig=SECRET&a=b", "https://host/x.tar?"),
        ("https://host/x.tar?SECRET", "https://host/x.tar?"),
        ("az://box/x.tar?sv=1&sig=SECRET", "az://box/x.tar?"),
        ("s3://box/it's.tar?sig=SECRET", "s3://box/it's.tar?"),
        ("--shards=https://me:SECRET@host/x.tar?sig=SECRET", "--shards=https://host/x.tar?"),
        (
            "'https://a:SECRET@b/x?s=SECRET' or \"https://c:SECRET@d/y?s=SECRET\": give data/?.tar",
            "'https://b/x?' or \"https://d/y?\": give data/?.tar",
        ),
        ('["https://a/x","me@b"]', '["https://a/x","me@b"]'),
        ("s3://box/train-??.tar", "s3://box/train-??.tar"),
        ("data/a@b-?.tar", "data/a@b-?.tar"),
    ],
)
def test_what_may_be_secret_is_left_out_and_nothing_else(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("name", ["caf\udce9", "a\n", "a\0"])
def test_a_name_that_cannot_be_stored_is_refused_from_any_folder(tmp_path, monkeypatch, name):
    with pytest.raises(
        ConfigError, match=r"^--run '.*' has a name that (is not UTF-8|has a control character): rename it$"
    ):
        check_path("--run", tmp_path / name)
    if "\0" not in name:
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with pytest.raises(ConfigError, match=r"^--run '/.*/run' has a name that "):
            check_path("--run", "run")


@pytest.mark.parametrize(("name", "target"), [("gone", "nowhere"), ("round", "round")])
def test_a_link_to_nothing_is_refused_as_such(tmp_path, name, target):
    (tmp_path / name).symlink_to(target)
    with pytest.raises(
        ConfigError, match=rf"^--run '.*{name}' is a link to '{target}', which does not exist"
    ):
        check_path("--run", tmp_path / name)
