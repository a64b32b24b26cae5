"""Links of the pages that lead out of docs/, folders in the navigation, and the documents that lie at the top of the repository.

A document links to a file of the repository by its path, as it is shown where the repository is. On the site such a link leads to a page
with the text of the file; of a file of conf/ to its place in the config reference.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from config_reference import page_of, pages
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TOP = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}  # shown as pages
AS_PAGE = {"README.md": "index.md", **TOP}
LANGUAGE = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".sh": "bash"}
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"(^ *(`{3,})[^\n]*\n.*?^ *\2 *$)", re.DOTALL | re.MULTILINE)


def shown_at(target: Path) -> str | None:
    """The page that shows a file or folder of the repository; None for what lies among the documents as it is."""
    path = target.relative_to(ROOT).as_posix()
    if path in AS_PAGE:
        return AS_PAGE[path]
    if place := page_of(target):
        return place
    inside = DOCS in target.parents
    if target.is_dir():
        return None if inside and (target / "index.md").exists() else f"source/{path}/index.md"
    return f"source/{path}.md" if target.is_file() and (not inside or target.suffix in LANGUAGE) else None


def outside_fences(text: str) -> Iterator[tuple[bool, str]]:
    """Parts of a document, with whether they are prose and not a block of code."""
    last = 0
    for fence in FENCE.finditer(text):
        yield True, text[last : fence.start()]
        yield False, fence[0]
        last = fence.end()
    yield True, text[last:]


def links(text: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Links of a document in `folder` that lead to files shown as pages: as they are written, and the place of the page."""
    for prose, part in outside_fences(text):
        for found in LINK.finditer(part) if prose else ():
            target = (folder / found[1]).resolve()
            if ROOT in target.parents and target.exists() and (place := shown_at(target)):
                yield found[1], place


def rewritten(text: str, folder: Path, uri: str) -> str:
    """A document whose links lead to pages of the site."""
    at = {written: os.path.relpath(place, os.path.dirname(uri) or ".").replace(os.sep, "/") for written, place in links(text, folder)}

    def new(found: re.Match[str]) -> str:
        place = at.get(found[1]) or _moved(found[1], folder, uri)
        return place + (found[2] or "")

    return "".join(LINK.sub(new, part) if prose else part for prose, part in outside_fences(text))


def _moved(written: str, folder: Path, uri: str) -> str:
    """A link to a document, from where the page that holds it is on the site."""
    target = (folder / written).resolve()
    if DOCS not in target.parents or not target.exists():
        return written
    return os.path.relpath(target.relative_to(DOCS), os.path.dirname(uri) or ".").replace(os.sep, "/")


def source_page(path: str) -> str:
    """The text of a file, or of all files of a folder."""
    target = ROOT / path
    files = [target] if target.is_file() else sorted(f for f in target.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    parts = ["---\nsearch:\n  exclude: true\n---", f"# {path}"]
    for file in files:
        parts += [f"## {file.relative_to(target).as_posix()}"] * target.is_dir()
        parts.append(f"``````{LANGUAGE.get(file.suffix, 'text')}\n{file.read_text(encoding='utf-8')}\n``````")
    return "\n\n".join(parts)


def folder_of(uri: str) -> Path:
    """The folder that the links of a page are relative to."""
    return ROOT if uri in TOP.values() else DOCS / os.path.dirname(uri)


def documents() -> dict[str, str]:
    """The documents by their place on the site, without those that are made of other files."""
    found = {f.relative_to(DOCS).as_posix(): f for f in sorted(DOCS.rglob("*.md"))}
    found |= {uri: ROOT / name for name, uri in TOP.items() if (ROOT / name).exists()}
    return {uri: file.read_text(encoding="utf-8") for uri, file in found.items()}


def on_config(config, **_):
    """A folder in the navigation stands for its pages without an entry of their own, each named by the first words of its title."""
    named = set(re.findall(r"[\w/]+\.md", str(config.nav)))
    titles = {uri: re.search(r"^# ([^:\n]*)", text, re.MULTILINE) for uri, text in {**documents(), **pages()}.items()}
    known = sorted(titles, key=lambda uri: (not uri.endswith("index.md"), uri))

    def expanded(entries: list) -> list:
        found = []
        for entry in entries:
            if isinstance(entry, dict):
                title, inner = next(iter(entry.items()))
                inner = expanded(inner if isinstance(inner, list) else [inner])
                found += [{title: inner if inner[1:] else inner[0]}] if inner else []
            else:
                within = [uri for uri in known if uri.startswith(entry) and uri not in named]
                found += [{t[1]: uri} if (t := titles[uri]) else uri for uri in within] if entry.endswith("/") else [entry]
        return found

    config.nav = expanded(config.nav)
    return config


def on_files(files, config, **_):
    wanted = {}
    for uri, text in documents().items():
        if uri in TOP.values():
            files.append(File.generated(config, uri, content=text))
        for written, place in links(text, folder_of(uri)):
            if place.startswith("source/"):
                wanted[place] = (folder_of(uri) / written).resolve().relative_to(ROOT).as_posix()
    for place, path in wanted.items():
        files.append(File.generated(config, place, content=source_page(path)))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    uri = page.file.src_uri
    return markdown if uri.startswith(("source/", "config/")) else rewritten(markdown, folder_of(uri), uri)
