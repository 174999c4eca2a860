"""Hooks of mkdocs: the pages at the top of the project join docs/, and links to source files become names."""

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
TOP_PAGES = {path.name: f"project/{path.name.lower()}" for path in ROOT.glob("*.md")}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    """Put pages that the navigation does not name at its end."""
    named = str(config.nav)
    pages = [f"project/{path.name.lower()}" for path in sorted(ROOT.glob("*.md"))]
    pages += [path.name for path in sorted((ROOT / "docs").glob("*.md"))]
    config.nav = [*(config.nav or []), *(page for page in pages if f"'{page}'" not in named)]
    return config


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the pages at the top of the project."""
    from mkdocs.structure.files import File

    for name, place in TOP_PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", **_: object) -> str:
    """Point links at the pages of the site."""
    return with_site_links(markdown, page.file.src_uri, config.repo_url)


def with_site_links(markdown: str, page: str, repository: str | None = None) -> str:
    """Return a page, by its place in the site, with links that hold there.

    A link to a file that is not a page becomes its text, or a link into the repository.
    """
    original = next((name for name, place in TOP_PAGES.items() if place == page), f"docs/{page}")

    def changed(link: re.Match[str]) -> str:
        image, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        if "://" in target:
            return link[0]
        path = (ROOT / original).parent.joinpath(target).resolve().relative_to(ROOT).as_posix()
        if path in TOP_PAGES or (path.startswith("docs/") and (ROOT / path).is_file()):
            place = TOP_PAGES.get(path, path.removeprefix("docs/"))
            above = "../" * (len(PurePosixPath(page).parts) - 1)
            return f"{image}[{text}]({above}{place}{anchor})"
        return f"[{text}]({repository.rstrip('/')}/blob/main/{path})" if repository else text

    return _LINK.sub(changed, markdown)
