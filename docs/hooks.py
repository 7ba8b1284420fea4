"""What MkDocs does beside its own work, so that the same pages serve the site and the repository.

Pages link to figures as ``../figures/...`` and to modules as ``../biasgym_tl/....py``, which is
right where the repository is browsed. On the site a figure is copied into it, a folder of figures
becomes a list of its files, and a module becomes the entry of the API reference that the link
names.
"""

import re
from html import escape
from pathlib import Path

from mkdocs.structure.files import File

FIGURE = re.compile(r"\]\(\.\./(figures/[^)#\s]+)\)")
MODULE = re.compile(r"\[`(\w+)`\]\(\.\./(biasgym_tl/[\w/]+)\.py\)")
ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):<code>([\w.]+)</code>")
"""Sphinx's way to name something in a docstring, after Markdown has read it."""


ENTRY = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
ENTRIES = {}
"""Name -> where the API reference has it."""


def on_files(files, config):
    """Add every figure, and every folder of figures, that a page links to."""
    root = Path(config.docs_dir).parent
    pages = [page.content_string for page in files.documentation_pages()]
    found = {path for page in pages for path in ENTRY.findall(page)}
    ENTRIES.update((path.rpartition(".")[2], path) for path in found)
    linked = {root / path for page in pages for path in FIGURE.findall(page)}
    for folder in filter(Path.is_dir, sorted(linked)):
        inside = sorted(filter(Path.is_file, folder.iterdir()))
        linked = linked - {folder} | set(inside)
        name = f"{folder.relative_to(root).as_posix()}/index.html"
        files.append(File.generated(config, name, content=_listing([f.name for f in inside])))
    for path in sorted(linked):
        name = path.relative_to(root).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def _listing(names):
    items = "".join(f'<li><a href="{escape(name)}">{escape(name)}</a></li>\n' for name in names)
    return f'<!doctype html>\n<meta charset="utf-8">\n<title>Files</title>\n<ul>\n{items}</ul>\n'


def on_page_markdown(markdown, page, config, files):
    """Point links at what the site has."""

    def figure(match):
        index = f"{match[1].rstrip('/')}/index.html"
        return f"]({index if files.get_file_from_path(index) else match[1]})"

    def entry(match):
        return f"[`{match[1]}`][{match[2].replace('/', '.')}.{match[1]}]"

    return MODULE.sub(entry, FIGURE.sub(figure, markdown))


def on_page_content(html, page, config, files):
    """Link names in docstrings to their entries in the reference, where they have one."""

    def link(match):
        name = match[1].rpartition(".")[2]
        code = f"<code>{name}</code>"
        if name not in ENTRIES:
            return code
        return f'<autoref identifier="{ENTRIES[name]}">{code}</autoref>'

    return ROLE.sub(link, html)
