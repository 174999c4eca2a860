"""Every promise of docs/cache.md names tests, and every test that it names exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cache.md").read_text(encoding="utf-8")
PROMISES, NO_PROMISES = PAGE.split("\n## What it does not promise\n")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def bullets(text):
    """The items of the lists of a page, each in one line."""
    return [" ".join(item.split()) for item in re.findall(r"^- (.*(?:\n  .*)*)", text, re.MULTILINE)]


@cache
def collected(path):
    """The names of the test functions of a file."""
    return {
        node.name
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("promise", bullets(PROMISES), ids=lambda promise: promise[:50])
def test_a_promise_is_one_sentence_and_the_tests_that_hold_it(promise):
    named = NAMED.findall(promise)
    assert named
    sentence, _, tests = promise.partition(" `tests/")
    assert sentence.endswith(".")
    assert re.search(r"\. [A-Z]", sentence) is None
    assert f"`tests/{tests}" == ", ".join(f"`{path}::{name}`" for path, name in named)
    for path, name in named:
        assert name.startswith("test_")
        assert name in collected(path), f"{path}::{name}"


def test_every_section_promises_something_and_the_rest_names_no_test():
    sections = PROMISES.split("\n## ")[1:]
    assert len(sections) >= 10
    assert all(bullets(section) for section in sections)
    assert len(bullets(NO_PROMISES)) >= 8
    assert NAMED.findall(NO_PROMISES) == []
