"""The floors of the house: an import may only point downwards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ssl_zoo"
FLOORS = {
    "cli": 5, "train": 5, "verbs": 5, "config": 5, "checks": 5, "build": 5, "saved": 5, "multirun": 5, "shard": 5, "run_folder": 5,
    "rules": 5, "evaluate": 5, "protocols": 5, "judging": 5, "subject": 5, "continued": 5, "origins": 5, "foreign": 5,
    "__main__": 5, "suite": 5, "benchmark": 5, "commands": 5, "stale": 5, "shortage": 5,
    "starting": 5, "exporting": 5, "launch": 5, "slurm": 5, "submit": 5, "facts": 5,
    "words": 5, "word_protocols": 5, "classify": 5, "loading": 5, "__init__": 5,
    "compiled": 5, "api": 5, "instance": 5, "embedding": 5, "searching": 5, "command_line": 5, "overrides": 5,
    "callbacks": 4, "export": 4, "formats": 4, "open_clip_folder": 4, "reports": 4,
    "methods": 3,
    "data": 2, "augment": 2, "evaluation": 2,
    "nn": 1, "collapse": 1, "optim": 1, "distributed": 1,
    "errors": 0, "fingerprint": 0, "foreign_yaml": 0, "files": 0, "metrics": 0, "prompts": 0, "word_lists": 0,
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def room(file):
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{a.name}" for a in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_downwards(file):
    floor = FLOORS[room(file)]
    for name in imports(file):
        top, *rest = name.split(".")
        if top == "ssl_zoo" and rest and rest != ["__version__"]:
            assert FLOORS[rest[0]] <= floor, f"{file} imports {name} from a higher floor"
            if room(file) == "methods" and rest[0] == "methods":
                assert rest[1] in ("base", "two_towers"), f"{file} imports another method"
        if top in ("hydra", "omegaconf"):
            assert floor == 5, f"{file} imports {top}"
        if top in ("lightning", "pytorch_lightning"):
            assert floor >= 3, f"{file} imports {top}"


def test_methods_stay_short():
    for file in (PACKAGE / "methods").glob("*.py"):
        assert file.name == "base.py" or len(file.read_text().splitlines()) <= 120, file


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, ssl_zoo, ssl_zoo.cli, ssl_zoo.config; print([m for m in ('torch', 'lightning', 'timm', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]", done.stderr


def test_loading_a_run_does_without_lightning():
    code = "import sys, ssl_zoo; ssl_zoo.load; print([m for m in sys.modules if m.startswith('lightning')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]", done.stderr


def test_reports_need_no_torch():
    code = "import sys\nfrom ssl_zoo.reports import html, summary, benchmark_page, card, search\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "False", done.stderr
