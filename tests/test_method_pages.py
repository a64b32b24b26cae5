"""What docs/methods/*.md says of a method is what its file, its config, its tests and its results say."""

import ast
import importlib
import inspect
import json
import re
import statistics
import sys

import pytest
import yaml
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs/site"))
import method_pages

PAGES = {f.stem: f.read_text(encoding="utf-8") for f in sorted(method_pages.PAGES.glob("*.md"))}
SECTIONS = ["Equations", "The file", "Recipe", "Results", "Pitfalls", "Citation"]
CODE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)
CITED = re.compile(r"\[`(test_\w+)`\]\(\.\./\.\./(tests/\w+\.py)\)")
LINES = [
    line for page in PAGES.values() for kind, text in CODE.findall(page) if kind == "bash" for line in text.replace("\\\n", "").splitlines()
]
every_page = pytest.mark.parametrize("method", PAGES)


def section(method, name):
    return PAGES[method].partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def module_of(method):
    return importlib.import_module(f"ssl_zoo.methods.{method}")


def names_of(method):
    """What a tour may name: what the module holds, its class has or inherits, its functions take or are given, and the keys it returns."""
    module = module_of(method)
    config = yaml.safe_load((ROOT / f"conf/method/{method}.yaml").read_text())
    kinds = getattr(module, config["_target_"].rpartition(".")[2]).__mro__
    sources = [inspect.getsource(module), *(inspect.getsource(sys.modules[k.__module__]) for k in kinds if "ssl_zoo" in k.__module__)]
    found = {*vars(module), *dir(kinds[0])}
    for node in (n for source in sources for n in ast.walk(ast.parse(source))):
        found |= {getattr(node, field, None) for field in ("arg", "attr")}  # parameters, keywords and attributes
        if isinstance(node, ast.Dict):
            found |= {k.value for k in node.keys if isinstance(k, ast.Constant)}
    return found


def resolves(name, method):
    """Whether a name of the tour is there: a key of the config, a part of something the module holds, or one of its names."""
    first, *rest = name.split(".")
    if first in ("method", "optimizer", "augment") and rest:
        return name in method_pages.trained(method_pages.composed(method, "none"))
    if not rest:
        return first in names_of(method)
    thing = getattr(module_of(method), first, None)
    for part in rest:
        thing = getattr(thing, part, None)
    return thing is not None


def test_every_method_has_a_page_of_the_same_parts():
    assert list(PAGES) == method_pages.METHODS
    for method, page in PAGES.items():
        assert page.startswith("# "), method
        assert re.findall(r"^## (.+)$", page, re.MULTILINE) == SECTIONS, method
        assert {name for _, name, _ in method_pages.PART.findall(page)} >= {"recipes", "views", "measured"}, method


@every_page
def test_generated_parts_are_up_to_date(method):
    """Else: python docs/site/method_pages.py"""
    assert method_pages.page(method, PAGES[method]) == PAGES[method]


@every_page
def test_the_paper_is_that_of_the_file(method):
    ids = set(re.findall(r"arXiv:(\d{4}\.\d{5})", module_of(method).__doc__))
    head = PAGES[method].partition("\n## ")[0]
    assert ids == set(re.findall(r"\[arXiv:(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)", head))


@every_page
def test_tests_that_are_cited_are_there(method):
    pitfalls = section(method, "Pitfalls")
    cited = CITED.findall(pitfalls)
    assert len(cited) == pitfalls.count("\n- ") == len(re.findall(r"`test_\w+`", PAGES[method]))
    for name, file in cited:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), f"{file}: {name}"


@every_page
def test_names_of_the_tour_are_there(method):
    tour = CODE.sub("", section(method, "The file"))
    names = set(re.findall(r"`([A-Za-z_][\w.]*)`", tour)) - {f"{method}.py"}
    assert {"step", yaml.safe_load((ROOT / f"conf/method/{method}.yaml").read_text())["_target_"].rpartition(".")[2]} <= names
    assert [n for n in sorted(names) if not resolves(n, method)] == []


@every_page
def test_losses_and_keys_named_beside_the_equations_are_there(method):
    names = set(re.findall(r"`(\w+)`", section(method, "Equations"))) | set(re.findall(r"`(method\.\w+)`", section(method, "Equations")))
    assert names
    assert [n for n in sorted(names) if not resolves(n, method)] == []


def test_commands_are_of_a_method():
    """That they compose, and those that can run here run, is tested in test_code_blocks."""
    assert [line for line in LINES if not line.startswith("ssl-zoo method=")] == []


@every_page
def test_equations_convert_to_mathml(method):
    converter = pytest.importorskip("latex2mathml.converter")
    found = MATH.findall(CODE.sub("", PAGES[method]))
    assert sum(bool(block) for block, _ in found) >= 2
    for latex in (block or inline for block, inline in found):
        assert "\\" not in converter.convert(latex), f"not converted: {latex}"  # a command it does not know stays as it is
        assert not re.search(r"\\[^A-Za-z]", latex), f"Markdown takes this backslash away: {latex}"


@every_page
def test_measured_numbers_are_those_of_the_results(method):
    block = next(m[0] for m in method_pages.PART.finditer(PAGES[method]) if m[2] == "measured")
    cited = re.findall(r"\]\(\.\./results/([\w-]+\.json)\)", block)
    if not cited:
        assert not any(f"method={method}" in f.read_text() for f in (ROOT / "docs/results").glob("*.json"))
        assert not re.search(r"\d", block)
        return
    known = set()
    for name in cited:
        found = json.loads((ROOT / "docs/results" / name).read_text())
        if isinstance(found, list):  # of a suite: means over seeds
            own = [r["final"] for r in found if r["method"] == method]
            known |= {round(statistics.fmean(r[k] for r in own), 1) for k in ("knn_top1", "linear_top1")}
            continue
        runs = found.values() if name == "short_runs.json" else [found]
        known |= {n for run in runs if f"method={method}" in run["command"] or run["command"] == "ssl-zoo" for n in numbers(run)}
    assert [x for x in re.findall(r"(\d+\.\d+) %", block) if float(x) not in known] == []
    for key in ("seed", "epochs"):
        assert key in block


def numbers(node):
    """Every number of a result, as it is and rounded as a page shows it."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict | list):
            yield from numbers(value)
        elif isinstance(value, int | float):
            yield from (round(value, 1), round(value, 2))


@every_page
def test_links_lead_somewhere(method):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[method]):
        assert target.startswith("https://") or (method_pages.PAGES / target.partition("#")[0]).exists(), target


@every_page
def test_lines_are_of_a_readable_length(method):
    for line in PAGES[method].splitlines():
        assert line.startswith("|") or len(line) <= 140, line
