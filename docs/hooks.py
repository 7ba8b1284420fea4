"""What MkDocs does beside its own work, so that the same pages serve the site and the repository.

Pages link to figures as ``../figures/...``, to notebooks as ``../notebooks/....ipynb`` and to
modules as ``../biasgym_tl/....py``, which is right where the repository is browsed. On the site a
figure is copied into it, a folder of figures becomes a list of its files, a notebook becomes a page
with its file beside it, and a module becomes the entry of the API reference that the link names.
Formulas become MathML, which browsers draw without a script.
"""

import re
import runpy
from html import escape, unescape
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

DOCS = Path(__file__).parent
ROOT = DOCS.parent
repository = runpy.run_path(str(DOCS / "address.py"))["repository"]
course = runpy.run_path(str(ROOT / "notebooks/course/make_exercises.py"))

NOTEBOOKS = [*sorted(ROOT.glob("notebooks/*.ipynb")), ROOT / "notebooks/course/exercises.ipynb"]
ARCHIVE = "notebooks/course/biasgym-course.zip"
FIGURE = re.compile(r"\]\(\.\./(figures/[^)#\s]+)\)")
NOTEBOOK = re.compile(r"\]\(\.\./(notebooks/[\w/]+)\.ipynb\)")
FORMULA = re.compile(r'<(div|span) class="arithmatex">\\([\[(])(.*?)\\[\])]</\1>', re.DOTALL)
MODULE = re.compile(r"\[`(\w+)`\]\(\.\./(biasgym_tl/[\w/]+)\.py\)")
ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):<code>([\w.]+)</code>")
"""Sphinx's way to name something in a docstring, after Markdown has read it."""
ENTRY = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
ENTRIES = {}
"""Name -> where the API reference has it."""


def on_config(config):
    """Link the repository, once it has an address."""
    config.repo_url = repository()
    return config


def on_files(files, config):
    """Add every notebook, and every figure and folder of figures that a page links to."""
    for path in NOTEBOOKS:
        for name, content in _published(path).items():
            files.append(File.generated(config, name, content=content))
    files.append(File.generated(config, ARCHIVE, content=course["archive"]()))
    pages = [page.content_string for page in files.documentation_pages()]
    found = {path for page in pages for path in ENTRY.findall(page)}
    ENTRIES.update((path.rpartition(".")[2], path) for path in found)
    linked = {ROOT / path for page in pages for path in FIGURE.findall(page)}
    for folder in filter(Path.is_dir, sorted(linked)):
        inside = sorted(filter(Path.is_file, folder.iterdir()))
        linked = linked - {folder} | set(inside)
        name = f"{folder.relative_to(ROOT).as_posix()}/index.html"
        files.append(File.generated(config, name, content=_listing([f.name for f in inside])))
    for path in sorted(linked):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def _published(path):
    """By path on the site, a notebook, its page and its pictures."""
    name = path.relative_to(ROOT).with_suffix("")
    text, extra = MarkdownExporter().from_notebook_node(nbformat.read(path, 4))
    pictures = {file: f"{path.stem}-{file}" for file in extra["outputs"]}
    for old, new in pictures.items():
        text = text.replace(f"({old})", f"({new})")
    text = re.sub(r"\]\(((?:\.\./)+)docs/", lambda m: f"]({m[1]}", text)
    text = re.sub(r"\]\(([\w/]+)\.ipynb\)", r"](\1.md)", text)
    text = text.replace("<details>", '<details markdown="1">')
    get = f"[This notebook as a file]({path.name})"
    if path.parent.name == "course":
        get += f", or [the course as one, without solutions]({Path(ARCHIVE).name})"
    text = re.sub(r"^(# .*)$", rf"\1\n\n{get}.", text, count=1, flags=re.MULTILINE)
    files = {f"{name.parent}/{new}": extra["outputs"][old] for old, new in pictures.items()}
    return files | {f"{name}.md": text, f"{name}.ipynb": path.read_bytes()}


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

    markdown = NOTEBOOK.sub(r"](\1.md)", FIGURE.sub(figure, markdown))
    return MODULE.sub(entry, markdown)


def on_page_content(html, page, config, files):
    """Set formulas, and link names in docstrings to their entries where they have one."""

    def link(match):
        name = match[1].rpartition(".")[2]
        code = f"<code>{name}</code>"
        if name not in ENTRIES:
            return code
        return f'<autoref identifier="{ENTRIES[name]}">{code}</autoref>'

    return ROLE.sub(link, FORMULA.sub(_formula, html))


def _formula(match):
    element, _, tex = match.groups()
    drawn = convert(unescape(tex), display="block" if element == "div" else "inline")
    return f'<{element} class="formula">{drawn}</{element}>'
