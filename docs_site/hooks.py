"""Hooks of MkDocs: add the generated pages and the linked files, and adapt the links."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs_site import api, links, reference
from tornado_status.api.openapi import load_document

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/: README and the like, the reference, and every linked file."""
    generated = {
        "reference/config.md": reference.config_page((ROOT / "config.yaml").read_text("utf-8")),
        "reference/cli.md": reference.cli_page(),
        "reference/api.md": api.api_page(load_document()),
    }
    for source, page in links.PAGES.items():
        if page not in generated:
            generated[page] = (ROOT / source).read_text("utf-8")
    generated["license.md"] = f"# Licence\n\n{generated['license.md']}"
    for uri, text in generated.items():
        files.append(File.generated(config, uri, content=text))
    for file in list(files.documentation_pages()):
        source = links.source_path(file.src_uri)
        for path in sorted(links.linked(file.content_string, source)):
            target = links.site_path(path)
            # MkDocs itself reports a link to a file that does not exist.
            if (
                target.startswith(f"{links.FILES}/")
                and files.get_file_from_path(target) is None
                and (ROOT / path).is_file()
            ):
                files.append(File.generated(config, target, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page's text with the links of the site."""
    return links.relink(markdown, links.source_path(page.file.src_uri))
