"""The documentation as a site: built without a warning, every link leads somewhere, and nothing is asked of another host."""

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from conftest import ROOT

pytestmark = pytest.mark.slow
NOWHERE = "http://127.0.0.1:9"  # a proxy that is none


class Page(HTMLParser):
    """What a page links to, what a browser loads for it, what can be linked to in it, and the texts of its code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.navigation: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.codes: set[str] = set()
        self.text = ""
        self._code: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {k: v or "" for k, v in attrs}
        self.anchors |= {named[k] for k in ("id", "name") if k in named}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
            self.navigation += [named["href"]] * ("md-nav__link" in named.get("class", ""))
        elif tag == "link" and named.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(named["href"])
        elif tag != "a":
            self.loaded += [named[k] for k in ("src", "poster", "data") if k in named]
            self.loaded += [part.split()[0] for part in named.get("srcset", "").split(",") if part.strip()]
        self.loaded += re.findall(r"url\(([^)]+)\)", named.get("style", ""))
        if tag == "code":
            self._code = []

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._code is not None:
            self._code.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "code" and self._code is not None:
            self.codes.add("".join(self._code))
            self._code = None


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": NOWHERE, "https_proxy": NOWHERE}
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}


def target_of(file: Path, link: str) -> Path:
    """The file that a link within the site leads to."""
    path = unquote(urlsplit(link).path)
    target = Path(os.path.normpath(file.parent / path)) if path else file
    return target / "index.html" if target.is_dir() else target


def test_every_link_and_anchor_resolves(site, pages):
    broken = []
    for file, page in pages.items():
        if file.name == "404.html":  # its links begin at the root of the server
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto") or link in ("", "#", "."):
                continue
            target = target_of(file, link)
            fragment = unquote(parts.fragment)
            found = target.is_file() and (not fragment or target not in pages or fragment in pages[target].anchors)
            broken += [] if found else [f"{file.relative_to(site)} -> {link}"]
    assert broken == []


def test_nothing_is_asked_of_another_host(site, pages):
    for file, page in pages.items():
        for source in page.loaded:
            assert source.startswith("data:") or not urlsplit(source).netloc, f"{file.relative_to(site)} loads {source}"
            assert file.name == "404.html" or source.startswith("data:") or target_of(file, source).is_file(), (file, source)
        html = file.read_text(encoding="utf-8")
        assert 'class="mermaid' not in html  # Material fetches what draws it
        assert 'data-md-component="source"' not in html  # and facts about a repository
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_every_page_is_in_the_navigation(site, pages):
    known = {target_of(site / "index.html", link) for link in pages[site / "index.html"].navigation}
    for file in (ROOT / "docs").rglob("*.md"):
        assert site / file.relative_to(ROOT / "docs").with_suffix(".html") in known, file
    for name in ("changelog", "contributing", "config/index", "config/method"):
        assert site / f"{name}.html" in known


def keys(table: dict, prefix: str = ""):
    for key, value in table.items():
        if isinstance(value, dict) and value and all(isinstance(k, str) for k in value):
            yield from keys(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}"


@pytest.mark.parametrize("file", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda f: f.relative_to(ROOT / "conf").as_posix())
def test_every_key_of_the_config_is_in_its_reference(site, pages, file):
    group = file.parent.relative_to(ROOT / "conf").as_posix()
    page = pages[site / "config" / ("index.html" if group == "." else f"{group.replace('/', '_')}.html")]
    text = file.read_text(encoding="utf-8")
    assert file.stem in page.anchors
    assert next(line for line in text.splitlines() if not line.startswith("# @package")).lstrip("# ") in page.text
    for key in keys(yaml.safe_load(text) or {}):
        assert any(code == key or code.endswith(f".{key}") for code in page.codes), key


@pytest.mark.parametrize("module", ["ssl_zoo", "ssl_zoo.api"])
def test_every_public_name_is_in_the_api_reference(site, pages, module):
    names = set(importlib.import_module(module).__all__) - {"__version__"}
    assert {n for n in names if f"{module}.{n}" not in pages[site / "api.html"].anchors} == set()


def test_equations_are_mathml(site, pages):
    concepts = (site / "concepts.html").read_text(encoding="utf-8")
    assert concepts.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == 1
    for file in pages:
        assert "arithmatex" not in file.read_text(encoding="utf-8"), file
