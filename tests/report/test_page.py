"""The report page: complete in itself, well-formed, escaped, and there for any length of log."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.report.page import MaskedImage, RunReport, render_page

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects what the tests ask for and refuses tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.addresses, self.images, self.charts, self.words = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        self.images += [values["alt"]] if tag == "img" else []
        self.charts += [values["aria-label"]] if tag == "svg" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data.strip())


def line(step, **changes):
    values = {
        "step": step,
        "epoch": step / 80,
        "loss": 1 / step,
        "loss_terms": {"level 2": 1 / step, "level 3": 2 / step},
        "learning_rate": 1e-3,
    }
    return (
        values
        | {"images_per_second": 800.0, "wait_share": 0.01, "data_seconds": 0.1, "step_seconds": 9.9}
        | changes
    )


def masked_image(key="000001", importance=True):
    rng = np.random.default_rng(0)
    weights = rng.random(16, np.float32) if importance else None
    return MaskedImage(rng.integers(0, 255, (32, 32, 3), np.uint8), np.array([0, 5, 15]), 8, weights, key)


def report(count=3, **changes):
    config = {
        "seed": 0,
        "mask": {"ratio": 0.7},
        "optimiser": {"schedule": {"warmup": 20}, "betas": [0.9, 0.95]},
    }
    values = {
        "title": "a run",
        "config": config,
        "facts": {"device": "cpu"},
        "metrics": [line(10 * i) for i in range(1, count + 1)],
    }
    values |= {"alignment": np.eye(2, 4), "levels": [2, 3], "mode": "dynamic", "images": [masked_image()]}
    return RunReport(**values | changes)


@pytest.fixture(scope="module")
def text():
    return render_page(report())


@pytest.mark.parametrize(("count", "levels"), [(0, 2), (1, 1), (2, 9), (1_000, 2)])
def test_any_length_of_log_gives_a_well_formed_page(count, levels):
    metrics = [
        line(10 * i, loss_terms={f"level {level}": 1.0 / i for level in range(levels)})
        for i in range(1, count + 1)
    ]
    text = render_page(report(metrics=metrics, alignment=np.ones((levels, 12)) / 12, levels=range(levels)))
    page = Page(text)
    assert len(page.charts) == (5 if count else 1)
    assert len(set(page.ids)) == len(page.ids)
    assert ("Nothing has been logged yet." in page.words) == (count == 0)


def test_nothing_comes_from_elsewhere(text):
    page = Page(text)
    assert page.addresses
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    assert set(re.findall(r"https?://[^\"' ]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"<script|@import|<link", text)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)


def test_the_same_report_gives_the_same_page(text):
    assert render_page(report()) == text


def test_charts_follow_the_theme(text):
    assert not re.search(r"#0[ab]0[ab]0\d", text)
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert used <= set(re.findall(r"(--\w+):", text))
    assert {"--ink", "--accent", "--warm", "--tone"} <= used
    assert "prefers-color-scheme: dark" in text


def test_all_text_is_escaped():
    evil = "<b onclick='x'>&\"</b>"
    images = [masked_image(key=evil)]
    text = render_page(
        report(
            title=evil,
            mode=evil,
            facts={evil: evil},
            config={evil: evil, "s" + evil: {evil: evil}},
            images=images,
        )
    )
    assert "<b onclick" not in text
    page = Page(text)
    assert page.words.count(evil) == 2 + 1 + 2 + 4 + 1  # title twice, mode, facts, configuration, key
    assert any(evil in alt for alt in page.images)


def test_headline_and_tables_tell_the_numbers():
    metrics = [
        line(10, loss=0.5, wait_share=0.0, images_per_second=50.0),
        line(2000, loss=0.25, wait_share=0.5, images_per_second=1950.0),
    ]
    words = Page(render_page(report(metrics=metrics))).words
    for expected in ("0.2500", "from 0.5000", "2,000", "25 epochs", "1,000", "25.0%"):
        assert expected in words
    for expected in (
        "general",
        "seed",
        "mask",
        "ratio",
        "0.7",
        "schedule.warmup",
        "[0.9, 0.95]",
        "device",
        "cpu",
    ):
        assert expected in words


def test_memory_per_image_is_told_where_it_was_measured():
    metrics = [line(10, bytes_per_image=24_000_000.0), line(20, bytes_per_image=25_640_000.0)]
    assert "25.6 MB" in Page(render_page(report(metrics=metrics))).words
    assert "memory per image" not in render_page(report())


def test_images_and_charts_are_told_in_words(text):
    page = Page(text)
    assert page.images == [
        "Image 000001",
        "Heat map of the teacher's importance over image 000001",
        "Image 000001 with the 13 hidden of its 16 patches grey",
    ]
    assert page.charts[0] == "Line chart of the loss against steps, from 0.1 to 0.03333, and of its terms."
    assert page.charts[-1].endswith(
        "teacher block 2 draws most on student block 0; teacher block 3 draws most on student block 1."
    )
    assert "3 of 16 patches visible" in page.words


def test_without_importance_there_is_no_overlay():
    page = Page(render_page(report(images=[masked_image(importance=False)])))
    assert len(page.images) == 2
    assert not any("importance" in word for word in page.words)


def test_missing_and_infinite_values_are_left_out():
    metrics = [
        {"step": 0},
        line(10, wait_share=None, loss_terms={"level 2": 0.1}),
        line(20, loss=float("inf"), images_per_second=float("nan")),
    ]
    assert "0.1000" in Page(render_page(report(metrics=metrics))).words
    assert "none" in Page(render_page(report(metrics=metrics[:1]))).words
