"""Hook of mkdocs.yml: pages of the site that are not files in docs/.

The README is the home page, and the other pages of the repository's root are under "Project". On GitHub the pages of
docs/ link to these by their path, so the links are rewritten.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "CODE_OF_CONDUCT.md": "code_of_conduct.md",
    "SECURITY.md": "security-policy.md",
}
_LINK = re.compile(r"(\]\()([^)#\s]+\.(?:md|jpg|png))((?:#[^)\s]*)?\))")


def site_path(target: str) -> str:
    """Path in the site of a path in the repository."""
    return PAGES.get(target, target.removeprefix("docs/"))


def rewritten(text: str, folder: str, page: str) -> str:
    """Markdown whose relative links lead to pages of the site.

    Args:
        text: the page in the repository, unchanged.
        folder: its folder there, relative to the root: ``""`` or ``docs/methods``.
        page: its path in the site.
    """

    def link(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if "://" in target:
            return match.group()
        goal = site_path(posixpath.normpath(posixpath.join(folder, target)))
        return before + posixpath.relpath(goal, posixpath.dirname(page) or ".") + after

    return _LINK.sub(link, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        head = "---\nhide:\n  - navigation\n---\n\n" if page == "index.md" else ""
        files.append(File.generated(config, page, content=head + rewritten(text, "", page)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    path = page.file.src_uri
    if page.file.generated_by:
        return markdown
    return rewritten(markdown, posixpath.join("docs", posixpath.dirname(path)), path)
