"""Canonical JSON, digests and sealed files."""

import hashlib

import pytest

from pipeline.cache.digests import canonical_json, digest_of, parse_json, seal_of, sealed


def test_canonical_json_and_digest():
    values = {"b": [1, 2.0, None], "a": {"ü": True}, "digest": "ignored"}
    assert canonical_json({"b": 1.0, "a": "ü"}) == b'{"a":"\\u00fc","b":1.0}'
    expected = hashlib.sha256(b'{"a":{"\\u00fc":true},"b":[1,2.0,null]}').hexdigest()
    assert digest_of(values) == digest_of(dict(reversed(values.items()))) == expected
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_a_sealed_file_is_its_canonical_json():
    values = {"b": 1, "z": 'a ,"digest":"' + "0" * 64 + '",', "schema_digest": "x"}
    data = sealed(values)
    assert data == canonical_json({**values, "digest": digest_of(values)}) + b"\n"
    assert seal_of(data) == digest_of(values)
    assert seal_of(sealed({"z": 1})) == digest_of({"z": 1})


@pytest.mark.parametrize(
    "change", [(b"}", b"} "), (b"\n", b""), (b"{", b" {"), (b"1", b"2"), (b"digest", b"digits")]
)
def test_a_sealed_file_of_another_form_is_refused(change):
    with pytest.raises(ValueError, match="does not match its digest"):
        seal_of(sealed({"b": 1, "z": 2}).replace(*change))


def test_whatever_is_not_a_json_object_is_a_value_error():
    for data in (b"", b"[]", b"1", b"\xff", b"[" * 100_000, b'{"a":' * 100_000):
        with pytest.raises(ValueError, match=r".+"):
            parse_json(data)
