"""The config reference: one page for each group of conf/, made from the files while the site is built."""

import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
WHOLE = ("experiment", "recipe", "suite")  # files of these set keys of the whole config
INTRO = """# Config reference

Every key of every file in `conf/`, with its default, made from the files when the site is built. `ssl-zoo list methods` (or another
group) tells what there is, and `ssl-zoo ... --cfg job` prints the composed config of a command. Any key can be set on the command
line, as in `ssl-zoo optimizer.base_lr=0.3`. [Composition](../architecture.md#composition) says how files are put together.

This page has the files that a verb begins with; the groups that they name are pages of their own. `???` has to be given.

"""
sys.path.insert(0, str(ROOT))  # the rules of a checkout that is not installed


class Key(NamedTuple):
    name: str
    default: str
    comment: str


def description(text: str) -> str:
    """The comment that a file begins with."""
    lines = text.splitlines()
    lines = lines[1:] if lines[0].startswith("# @package") else lines
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:first])


def comment(lines: list[str], row: int, column: int) -> str:
    """What is said behind a value that ends at this row and column, with the lines of comment below that go on with it."""
    said = re.search(r"(?:^|\s)#\s?(.*)", lines[row][column:])
    more = []
    for line in lines[row + 1 :] if said else []:
        if not re.match(r"\s{8,}#", line):  # far to the right: not a line of its own
            break
        more.append(line.lstrip(" #"))
    return " ".join([said[1], *more]) if said else ""


def table(node: yaml.Node) -> bool:
    """Whether a value is a table of keys. A table by size, {32: 0.5, 128: 1.0}, is one value, as is an empty one."""
    return isinstance(node, yaml.MappingNode) and bool(node.value) and node.value[0][0].tag == "tag:yaml.org,2002:str"


def keys(node: yaml.MappingNode, text: str, prefix: str = "") -> Iterator[Key]:
    """The keys of a file in their order, those of inner tables with dots."""
    lines = text.splitlines()
    for key, value in node.value:
        if key.value == "defaults" and not prefix:
            continue
        if table(value):
            inner = list(keys(value, text, f"{prefix}{key.value}."))
            above = comment(lines, key.end_mark.line, key.end_mark.column) if not value.flow_style else ""
            yield from [inner[0]._replace(comment=": ".join(filter(None, (above, inner[0].comment)))), *inner[1:]]
        else:
            end = value.end_mark if isinstance(value, yaml.ScalarNode) or value.flow_style else key.end_mark
            default = " ".join(text[value.start_mark.index : value.end_mark.index].split())
            yield Key(prefix + key.value, default, comment(lines, end.line, end.column))


def keys_of(file: Path) -> list[Key]:
    text = file.read_text(encoding="utf-8")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    return list(keys(node, text)) if isinstance(node, yaml.MappingNode) else []


def parts_of(file: Path) -> list[str]:
    """The files that a file is composed of, as in `method: simclr`."""
    listed = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    return [" ".join(f"{k}: {'null' if v is None else v}" for k, v in d.items()) for d in listed.get("defaults", []) if isinstance(d, dict)]


def cell(text: str) -> str:
    """Plain text in a table of Markdown."""
    return re.sub(r"([\\|*_\[\]$`])", r"\\\1", html.escape(text, quote=False))


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def section(file: Path, prefix: str) -> str:
    """One file: what it is for, what it is composed of, and a row for each key."""
    from ssl_zoo.rules import RULES

    lines = [f"## {file.stem} {{#{file.stem}}}", "", cell(description(file.read_text(encoding="utf-8"))), ""]
    if parts := parts_of(file):
        lines += ["Composed of " + ", ".join(map(code, parts)) + ".", ""]
    rows, sets = keys_of(file), file.parent.name in WHOLE
    if rows:
        lines += [f"| key | {'value' if sets else 'default'} | |", "| :-- | :-- | :-- |"]
    for key in rows:
        rule = None if sets else RULES.get(prefix + key.name)
        takes = [f"*Takes {cell(rule[1])}.*"] if rule else []
        said = [cell(key.comment)] if key.comment else []
        lines.append(f"| {code(prefix + key.name)} | {code(key.default)} | {'<br>'.join(said + takes)} |")
    return "\n".join([*lines, ""])


def prefix_of(group: Path) -> str:
    """What the keys of a group begin with on the command line."""
    if group.name in WHOLE:
        return ""
    return "augment.view1." if group.name == "view" else f"{group.name}."


def introduction(group: str, files: list[Path]) -> str:
    """The title of a group's page, how a file of it is chosen, and links to them."""
    ways = {
        "augment/view": "`augment.view1`, `augment.view2` and `augment.local` are each one of these",
        "suite": "`ssl-zoo benchmark suite=` takes one of these",
    }
    how = ways.get(group, f"Chosen by `{group}=`")
    return f"# {group.replace('/', '.')}\n\n{how}: {', '.join(f'[{f.stem}](#{f.stem})' for f in files)}.\n\n"


def pages() -> dict[str, str]:
    """The pages of the reference by their place among the documents."""
    found = {"config/index.md": INTRO + "\n".join(section(f, "") for f in sorted(CONF.glob("*.yaml")))}
    for folder in sorted(d for d in CONF.rglob("*") if d.is_dir() and any(d.glob("*.yaml"))):
        group, files = folder.relative_to(CONF).as_posix(), sorted(folder.glob("*.yaml"))
        text = introduction(group, files) + "\n".join(section(f, prefix_of(folder)) for f in files)
        found[f"config/{group.replace('/', '_')}.md"] = text
    return found


def page_of(file: Path) -> str | None:
    """Where the reference shows a file of conf/, as a page and its anchor."""
    if file.suffix != ".yaml" or CONF not in file.parents:
        return None
    group = file.parent.relative_to(CONF).as_posix().replace("/", "_").replace(".", "index")
    return f"config/{group}.md#{file.stem}"


def on_files(files, config, **_):
    for uri, text in pages().items():
        files.append(File.generated(config, uri, content=text))
    return files
