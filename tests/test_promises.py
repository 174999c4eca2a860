"""Every promise of docs/cache.md names tests, and every test that it names exists."""

import ast
import re
from functools import cache
from pathlib import Path

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
    file = ROOT / path
    tree = ast.parse(file.read_text(encoding="utf-8") if file.exists() else "")
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and "test_" in node.name}


def faults_of(promise):
    """What is wrong with the form of a promise, and the tests that it names and that do not exist."""
    sentence, _, tests = promise.partition(" `tests/")
    named = NAMED.findall(promise)
    if not sentence.endswith(".") or ". " in re.sub(r"\. (?![A-Z])", "", sentence):
        yield f"{sentence[:60]!r} is not one sentence"
    if not named or f"`tests/{tests}" != ", ".join(f"`{path}::{name}`" for path, name in named):
        yield f"{sentence[:60]!r} does not end with a list of tests"
    yield from (f"{path}::{name} does not exist" for path, name in named if name not in collected(path))


def test_promises_are_one_sentence_and_name_existing_tests():
    assert [fault for promise in bullets(PROMISES) for fault in faults_of(promise)] == []


def test_every_section_promises_something_and_the_rest_nothing():
    sections = PROMISES.split("\n## ")[1:]
    assert len(sections) >= 10
    assert all(bullets(section) for section in sections)
    assert len(bullets(NO_PROMISES)) >= 8
    assert NAMED.findall(NO_PROMISES) == []
