"""What MkDocs needs to be told of pages that are also read in the repository: `make docs`.

Files outside of docs/ that are pages too (PROJECT) are taken in below project/. A link to any other file of the repository becomes its
name, because the site stands alone.
"""

from __future__ import annotations

import pathlib
import posixpath
import re
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = ("CONTRIBUTING.md", "CHANGELOG.md", "examples/extend/README.md", "configs/README.md")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Take in the pages of the project."""
    from mkdocs.structure.files import File

    for name in PROJECT:
        files.append(File.generated(config, f"project/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as the site has them."""
    return rewritten(markdown, page.file.src_uri, {file.src_uri for file in files})


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The one script that the theme loads from the network comes with the site."""
    above = "../" * page.url.count("/")
    return output.replace("https://unpkg.com/iframe-worker/shim", f"{above}assets/iframe-worker.js")


def rewritten(markdown: str, page: str, known: set[str]) -> str:
    """The text of a page with its links to other files of the repository made links of the site, or code.

    `page` and `known` are paths as the site has them.
    """
    in_project = page.startswith("project/")
    folder = posixpath.dirname(page.removeprefix("project/") if in_project else f"docs/{page}")

    def replace(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        place = posixpath.normpath(posixpath.join(folder, target))  # in the repository
        site = place.removeprefix("docs/") if place.startswith("docs/") else f"project/{place}"
        if site in known:
            return f"[{text}]({posixpath.relpath(site, posixpath.dirname(page) or '.')}{anchor})"
        return text if text.startswith("`") else f"{text} (`{place}`)"

    return _LINK.sub(replace, markdown)
