"""`ssl-zoo search`: the neighbours and near-duplicates that brute force finds, on a page."""

import csv

import numpy as np
import pytest
import torch
from conftest import command, finished, picture, write
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import ssl_zoo
from ssl_zoo.embedding import check_embed, embed, embed_config
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation import duplicates
from ssl_zoo.overrides import override
from ssl_zoo.reports.search import write_csv
from ssl_zoo.searching import check_search, search, search_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("runs") / "run", "backbone=tiny", "dataset.image_size=16")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve noisy pictures, a copy of one and a file that is none."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).resize((32, 32)).save(folder / f"{i:02}.png")
    Image.open(folder / "03.png").save(folder / "copy of 03.png")
    write(folder, "04b.png", b"no picture")
    return folder


def found(run, *words):
    config = search_config([override("run", run), *words], [])
    return search(config, check_search(config))


def rows(file):
    with open(file, newline="") as f:
        return list(csv.DictReader(f))


def test_neighbours_are_those_of_brute_force(run, photos, tmp_path):
    out = tmp_path / "found"
    lines = found(run, f"data={photos}", f"query={photos / '03.png'},{photos / '07.png'}", "top=5", f"out={out}")
    net = ssl_zoo.load(run)
    files = sorted(f for f in photos.iterdir() if f.name != "04b.png")
    with torch.no_grad():
        features = torch.nn.functional.normalize(net(torch.stack([net.transform(f) for f in files])), dim=1)
    table = rows(out / "neighbours.csv")
    assert len(table) == 10
    for query in ("03.png", "07.png"):
        own = [r for r in table if r["query"].endswith(query)]
        cosines = features @ features[[f.name for f in files].index(query)]
        best = cosines.sort(descending=True).values[:5]
        assert [int(r["rank"]) for r in own] == [1, 2, 3, 4, 5]
        torch.testing.assert_close(torch.tensor([float(r["cosine"]) for r in own]), best, rtol=0, atol=1e-5)
        for r in own:
            assert abs(float(cosines[[f.name for f in files].index(r["name"])]) - float(r["cosine"])) < 1e-5
    assert {table[0]["name"], table[1]["name"]} == {"03.png", "copy of 03.png"}
    assert lines[0].startswith("03.png")
    assert (out / "neighbours.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "search.html").read_text()
    assert "copy of 03.png" in page
    assert "data:image/png;base64," in page


def test_a_copy_is_a_duplicate(run, photos, tmp_path):
    lines = found(run, f"data={photos}", "duplicates=0.99999", f"out={tmp_path}")
    assert {(r["group"], r["name"]) for r in rows(tmp_path / "duplicates.csv")} == {("1", "03.png"), ("1", "copy of 03.png")}
    assert "2 of 13 images" in lines[0]
    assert not (tmp_path / "neighbours.png").exists()
    assert "2 of 13 images" in found(run, f"data={photos}", "duplicates=1", f"out={tmp_path}")[0]
    lines = found(run, f"data={photos}", "duplicates=0.1", f"out={tmp_path}")
    assert "That is most of them" in lines[0]


def test_only_an_earlier_search_is_written_over(run, photos, tmp_path):
    (tmp_path / "neighbours.csv").write_text("precious")
    with pytest.raises(UserError, match="holds other things than an earlier search"):
        found(run, f"data={photos}", "duplicates=0.99", f"out={tmp_path}")
    assert (tmp_path / "neighbours.csv").read_text() == "precious"
    found(run, f"data={photos}", "duplicates=0.99", f"query={photos / '03.png'}", f"out={tmp_path / 'o'}")
    found(run, f"data={photos}", "duplicates=0.99", f"out={tmp_path / 'o'}")
    assert {f.name for f in (tmp_path / "o").iterdir()} == {"search.html", "duplicates.csv", "duplicates.png"}


def test_nothing_alike_is_said(run, tmp_path):
    lines = found(run, "split=test", "duplicates=1.0", f"out={tmp_path}")
    assert lines[0] == "duplicates    none: no two images have a cosine of 1.0 or more"
    assert "No two of 16 images" in (tmp_path / "search.html").read_text()


@pytest.mark.parametrize("name", ["f.parquet", "f.npy"])
def test_what_embed_wrote_is_taken(run, photos, tmp_path, name):
    config = embed_config([override("run", run), f"data={photos}", f"out={tmp_path / name}"], [])
    embed(config, check_embed(config))
    words = (f"query={photos / '05.png'}", f"features={tmp_path / name}", f"out={tmp_path / 'o'}")
    assert "05.png (1.000)" in found(run, f"data={photos}", *words)[0]
    with pytest.raises(UserError, match="is not of these images"):
        found(run, *words)  # the run's own images


def test_features_are_kept_in_the_cache(run, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_ZOO_CACHE", str(tmp_path / "cache"))
    words = (f"data={photos}", f"query={photos / '05.png'}", f"out={tmp_path / 'o'}")
    first = found(run, *words)
    (kept,) = (tmp_path / "cache").glob("embedding-*.parquet")
    with monkeypatch.context() as m:
        m.setattr("ssl_zoo.searching.write_features", None)
        assert found(run, *words) == first
    kept.write_bytes(b"damaged")
    assert found(run, *words) == first


def brute(features, cosine):
    x = torch.nn.functional.normalize(features, dim=1)
    return {(i, j) for i in range(len(x)) for j in range(i + 1, len(x)) if float(x[i] @ x[j]) >= cosine}


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), n=st.integers(2, 40), cosine=st.floats(0.3, 0.99), chunk=st.integers(1, 50))
def test_pairs_and_groups(seed, n, cosine, chunk):
    features = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)).double()
    x = torch.nn.functional.normalize(features, dim=1)
    assume(not ((x @ x.T - cosine).abs() < 1e-5).any())
    pairs, cosines = duplicates.similar_pairs(features, cosine, chunk)
    wanted = brute(features, cosine)
    assert len(pairs) == len(wanted)
    assert {tuple(p) for p in pairs.tolist()} == wanted
    groups = duplicates.groups(pairs, cosines)
    members = [i for g in groups for i, _ in g]
    assert sorted(members) == sorted({i for p in wanted for i in p})  # each once
    value = {frozenset(p): c for p, c in zip(pairs.tolist(), cosines.tolist(), strict=True)}
    for g in groups:
        assert len(g) > 1
        for i, c in g:
            assert c == max(value[frozenset((i, j))] for j, _ in g if frozenset((i, j)) in value)
    assert [min(c for _, c in g) for g in groups] == sorted((min(c for _, c in g) for g in groups), reverse=True)


def test_chains_do_not_grow_together():
    angles = torch.arange(9) * 0.2
    features = torch.stack([angles.cos(), angles.sin()], 1)
    pairs, cosines = duplicates.similar_pairs(features, float(torch.tensor(0.25).cos()))
    assert len(pairs) == 8
    assert max(len(g) for g in duplicates.groups(pairs, cosines)) <= 4


def test_too_many_pairs_are_one_sentence():
    with pytest.raises(UserError, match=r"More than 10 pairs .* raise duplicates"):
        duplicates.similar_pairs(torch.ones(10, 2), 0.9, most=10)


def test_cells_that_would_be_computed_are_text(tmp_path):
    file = write_csv(tmp_path / "x.csv", [{"name": "=1+1", "cosine": -0.5}, {"name": "a\ud800", "cosine": 1.0}])
    assert file.read_text().splitlines()[1:] == ["'=1+1,-0.5", "a\\ud800,1.0"]


def test_wrong_input_is_one_sentence(run, photos, tmp_path):
    (tmp_path / "text.txt").write_text("x")
    for words, said in (
        ((), "looks for neighbours of query=... or for duplicates"),
        ((f"query={photos}",), "is a folder: name the pictures in it"),
        (("query=none.png",), "query=none.png does not exist"),
        ((f"query={tmp_path / 'text.txt'}",), "is no picture that can be read"),
        (("duplicates=2",), "takes a cosine above 0 and up to 1"),
        (("duplicates=true",), "takes a cosine above 0 and up to 1"),
        (("duplicates=0.9", "features=none.npy"), "features=none.npy is no file"),
        (("duplicates=0.9", f"features={tmp_path / 'text.txt'}"), "is no embedding that ssl-zoo embed wrote"),
        (("duplicates=0.9", f"out={tmp_path / 'text.txt'}"), "is a file: choose a folder"),
        (("duplicates=0.9", "top=0"), "top=0 does not work"),
        (("duplicates=0.9", "split=both"), "split takes all, train, test"),
    ):
        with pytest.raises(UserError, match=said.replace(".", r"\.")):
            found(run, f"data={photos}", *(() if any(w.startswith("out=") for w in words) else (f"out={tmp_path / 'o'}",)), *words)


def test_the_command(run, photos, tmp_path):
    done = command("search", f"run={run}", f"data={photos}", f"query={photos / 'copy of 03.png'}", "out=o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "page          o/search.html" in done.stdout
    assert command("search", f"run={run}", "--cfg", "job", cwd=tmp_path).returncode == 0
    write(tmp_path, "a,b.png", picture())
    assert command("search", f"run={run}", "query=a,b.png", "out=o", cwd=tmp_path).returncode == 0
