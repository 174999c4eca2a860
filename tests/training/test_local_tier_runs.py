"""Runs with a local tier: the same losses, and settings that cannot work are refused at once."""

from training_runs import losses, refused, trained


def test_a_run_keeps_what_it_reads_and_learns_the_same(small_cache_path, tmp_path):
    keys = f"data.local_tier={tmp_path / 'tier'}", "data.local_bytes=100MB"
    plain = trained(small_cache_path, tmp_path / "plain")
    kept = trained(small_cache_path, tmp_path / "kept", *keys, "data.workers=2")
    assert losses(plain) == losses(kept)
    assert len(list((tmp_path / "tier").glob("??/*"))) > 10


def test_a_tier_without_limit_or_place_is_refused(small_cache_path, tmp_path):
    together = "local_tier and local_bytes belong together: name a folder and its limit"
    for keys, message in (
        (("local_tier=tier",), together),
        (("local_bytes=10",), together),
        (
            ("local_tier=tier", "local_bytes=200GiB"),
            "'data.local_bytes' is '200GiB': give whole bytes, or a size in kB, MB, GB, TB or PB, such as",
        ),
        (("local_tier=/proc/tier", "local_bytes=10"), "data.local_tier '/proc/tier' cannot be used"),
    ):
        refused(message, small_cache_path, tmp_path / "run", *(f"data.{key}" for key in keys))
