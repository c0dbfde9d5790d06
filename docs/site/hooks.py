"""What ``make docs`` adds to MkDocs: files outside docs/ that a page links to are pages of the site too.

So a link such as ``../deploy/systemd/picoclaw.service`` works on a code host and in the site. Nothing that a
page loads may come from another server.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(\.\./([\w./-]+)")
IN_MARKDOWN = re.compile(r"\]\((?!https?:|#)([\w./-]+)")
LOADED = re.compile(r"<(?:script|img|iframe|source)[^>]+src=\"?https?:[^>]*>|<link[^>]+https?:[^>]*>")
CANONICAL = re.compile(r'<link rel="?canonical"?[^>]*>')
LANGUAGES = {".py": "python", ".mjs": "js", ".yml": "yaml", ".yaml": "yaml", ".json": "json"}
SITE_URL = "https://picoclaw.invalid/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside docs/ that is linked to."""
    pages = [file for file in files if file.is_documentation_page()]
    wanted = {target for file in pages for target in LINK.findall(file.content_string)}
    seen: set[str] = set()
    while wanted:
        target = wanted.pop()
        seen.add(target)
        text = _page(target)
        wanted |= {f for f in _outside(target) if f not in seen}
        files.append(
            File.generated(config, f"source/{target}.md", content=text, inclusion=InclusionLevel.NOT_IN_NAV)
        )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of docs/ to those pages."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    return LINK.sub(r"](source/\1.md", markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads from another server, and take out the address that it doesn't have."""
    output = CANONICAL.sub("", output)
    if loaded := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads from another server: {loaded[0]}")
    return output


def on_post_build(config: MkDocsConfig) -> None:
    """Make the addresses in the pages for models relative: nobody knows where the site will be."""
    site = Path(config.site_dir)
    for sitemap in site.glob("sitemap.xml*"):
        sitemap.unlink()
    for file in [*site.glob("*.txt"), *site.glob("*.md")]:
        file.write_text(file.read_text().replace(SITE_URL, ""))


def _page(target: str) -> str:
    file = ROOT / target
    if not file.is_file():
        raise PluginError(f"docs/ links to ../{target}, which is no file")
    head = "---\nsearch:\n  exclude: true\n---\n\n"
    if file.suffix == ".md":
        return head + IN_MARKDOWN.sub(lambda link: f"]({_seen_from(target, link[1])}", file.read_text())
    language = LANGUAGES.get(file.suffix, "text")
    return f"{head}# {target}\n\n````{language}\n{file.read_text()}\n````\n"


def _outside(target: str) -> set[str]:
    """Return the files outside docs/ that a Markdown file outside docs/ links to."""
    if not target.endswith(".md"):
        return set()
    links = IN_MARKDOWN.findall((ROOT / target).read_text())
    found = {posixpath.normpath(posixpath.join(posixpath.dirname(target), link)) for link in links}
    return {each for each in found if not each.startswith("docs/")}


def _seen_from(target: str, link: str) -> str:
    """Return where a page below source/ finds what its file links to."""
    there = posixpath.normpath(posixpath.join(posixpath.dirname(target), link))
    place = there.removeprefix("docs/") if there.startswith("docs/") else f"source/{there}.md"
    return posixpath.relpath(place, posixpath.dirname(f"source/{target}"))
