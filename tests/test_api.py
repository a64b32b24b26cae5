"""`ssl_zoo.api`: each verb takes what the command takes, whatever is in it, and gives what it made."""

import inspect
import json

import pytest
from conftest import ROOT, SMOKE, finished, picture, write
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_zoo import api
from ssl_zoo.cli import VERBS
from ssl_zoo.overrides import override, parse

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12).filter(lambda t: "${" not in t)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200)
@given(value=VALUES)
def test_a_value_is_read_back_as_it_was(value):
    found = parse([override("key", value)])[0].value()
    assert plain(found) == value
    assert isinstance(plain(found), type(value))


def plain(value):
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return str(value) if not isinstance(value, (int, float, bool, type(None))) else value


def test_every_verb_is_a_function():
    names = {"eval": "evaluate", "list": "choices"}
    assert {names.get(v, v) for v in VERBS} == {n for n in api.__all__ if inspect.isfunction(getattr(api, n))}
    for name in api.__all__:
        assert inspect.getdoc(getattr(api, name))


def test_a_run_from_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    summary = api.pretrain(*SMOKE, run="my run", seed=3, method="byol")
    assert summary == json.loads((tmp_path / "my run" / "summary.json").read_text())
    assert (summary["run"], summary["seed"], summary["epochs"]) == ("my run", 3, 2)
    assert api.resume("my run", epochs=3)["epochs"] == 3
    (result,) = api.evaluate(run="my run", protocol="knn", **{"protocol.k": [5]})
    assert [r["k"] for r in result["results"]] == [5]
    assert api.report(run="my run").is_file()
    page = api.report(runs=".", out="the table")
    assert page == (tmp_path / "the table" / "index.html").relative_to(tmp_path)
    assert page.is_file()
    assert "kNN top-1" in capsys.readouterr().out


def test_what_comes_after_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = finished(tmp_path / "a run", "backbone=tiny", "dataset.image_size=16")
    for i in range(4):
        write(tmp_path / "two words", f"{i}.png", picture((40 * i, 9, 9)))
    assert (api.export(run, "safetensors", out="out put") / "export.json").is_file()
    assert api.embed(run, "f.npy", data="two words").is_file()
    for name in ("1.png", "it's a, b.png", "ü.png", "[x].png", "a=b ${c}.png"):
        write(tmp_path / "two words", name, picture())
        for query in (f"two words/{name}", tmp_path / "two words" / name):
            folder = api.search(run, data="two words", query=query, out="found", top=2)
            assert (folder / "search.html").is_file()
    assert api.embed(run, "own.npy", data=None).is_file()
    assert api.preview(dataset="folder", file="p.png", **{"dataset.path": "two words"}).is_file()
    assert (api.shard(data="two words", out="packed") / "train").is_dir()


def test_what_is_wrong_is_raised(tmp_path):
    with pytest.raises(api.UserError, match="did you mean 'method'"):
        api.pretrain(metod="dino")
    with pytest.raises(api.UserError, match="is not a folder"):
        api.resume(tmp_path / "none")
    with pytest.raises(api.UserError, match="There is no group"):
        api.choices("methods!")
    assert "dino" in api.choices("method")


@pytest.mark.slow
def test_a_suite_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "mine.yaml").write_text(f"method: [simclr]\nbackbone: tiny\ndataset: shapes\nseed: 0\noverrides: {json.dumps(SMOKE)}\n")
    page = api.benchmark("mine.yaml", out="there")
    assert page.is_file()
