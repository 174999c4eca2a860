"""The documents as a site: every link of every page leads to a page of the site, or became plain text."""

import re
from pathlib import PurePosixPath

from site_pages import ROOT, TOP_PAGES, with_site_links

DOCS = {
    path.relative_to(ROOT / "docs").as_posix(): path for path in (ROOT / "docs").rglob("*") if path.is_file()
}
PAGES = {place: ROOT / name for name, place in TOP_PAGES.items()} | {
    place: path for place, path in DOCS.items() if place.endswith(".md")
}


def resolved(page, target):
    """A link's place in the site."""
    parts = []
    for part in (PurePosixPath(page).parent / target).parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)


def test_links_lead_to_pages_of_the_site():
    links = [
        (page, resolved(page, target))
        for page, path in PAGES.items()
        for target in re.findall(
            r"\]\(([^)#\s]+)(?:#[^)]*)?\)", with_site_links(path.read_text(encoding="utf-8"), page)
        )
        if "://" not in target
    ]
    assert len(links) > 40
    assert [link for link in links if link[1] not in {*PAGES, *DOCS}] == []


def test_the_navigation_has_each_page_once():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert sorted(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)) == sorted(PAGES)


def test_files_that_are_not_pages_become_names_or_links():
    text = "See [the recipe](../stages/recipes/vit_b16.toml), [this](library.md#x) and [web](https://a.b/c)."
    plain = "See the recipe, [this](library.md#x) and [web](https://a.b/c)."
    assert with_site_links(text, "scale.md") == plain
    linked = with_site_links(text, "scale.md", "https://host/us/")
    assert "[the recipe](https://host/us/blob/main/stages/recipes/vit_b16.toml)" in linked
    assert with_site_links("[a](docs/library.md#x)", "project/readme.md") == "[a](../library.md#x)"
