"""What a person sees of a long command, and what stays recorded of where its results come from."""

import io
import os
import pty
import re
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from pipeline.progress import ProgressDisplay
from pipeline.provenance import git_commit, provenance


def test_images_rate_and_time_left_fit_into_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with ProgressDisplay("train-student", 256_204_800) as progress:
        progress.update(51_200, "")
        progress.update(123_456_789, "loss 0.1234, and much more that does not fit")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).splitlines()[-1]
    assert len(shown) <= 80
    assert re.search(r"123,456,789/256,204,800 images, [\d,]+/s, \d+:\d\d:\d\d left", shown), shown


def test_elsewhere_than_on_a_terminal_a_line_is_printed_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("pipeline.progress._SECONDS_BETWEEN_LINES", 0)
    with ProgressDisplay("verify", 20, unit="units") as progress:
        progress.update(5, "")
        progress.update(10, "[bold] is text")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "verify: 5/20 units"
    assert re.fullmatch(r"verify: 10/20 units, \S+/s, 0:00:00 left, \[bold\] is text", second)


@pytest.mark.parametrize("make_stream", [os.pipe, pty.openpty])
def test_a_closed_pipe_or_terminal_fails_nothing(make_stream, monkeypatch):
    monkeypatch.setattr("pipeline.progress._SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = make_stream()
    with io.TextIOWrapper(os.fdopen(writer, "wb", buffering=0), write_through=True) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with ProgressDisplay("verify", 20) as progress:
            progress.update(5, "")
            assert b"verify" in os.read(reader, 1000)
            os.close(reader)
            progress.update(10, "")
            time.sleep(0.3)  # on a terminal, a thread draws, too
            progress.update(15, "")


def test_a_recorded_command_holds_no_password_and_no_broken_text(monkeypatch):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "/x/fit",
            "https://me:p@ss@host/a b.tar",
            "--to=s3://k:s'c@b",
            "http://h/x.tar?sig=T",
            "caf\udce9.tar",
        ],
    )
    assert provenance()["command"] == (
        "fit 'https://host/a b.tar' --to=s3://b 'http://h/x.tar?' 'caf\\udce9.tar'"
    )


def test_provenance_names_version_commit_and_host():
    found = provenance("torch", "no-such-library")
    assert found["maskalign"] == version("maskalign")
    assert found["versions"].keys() == {"python", "torch"}
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert (git_commit() or "").removesuffix("-dirty") == head
    assert found["host"]
    assert found["began"].endswith("+00:00")
