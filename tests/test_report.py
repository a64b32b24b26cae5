"""Figures and pages from made-up run folders, odd ones included; no torch."""

import json
import re
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ssl_zoo.reports import figures, pictures, scores, word_pictures
from ssl_zoo.reports.evaluations import evaluation_section, words
from ssl_zoo.reports.figures import curves_caption, draw_all
from ssl_zoo.reports.html import write_report
from ssl_zoo.reports.page import page
from ssl_zoo.reports.style import STYLE, save

RNG = np.random.default_rng(0)
ODD = ["$a_$", "100 % <b>", "日本語", "cl\udcff", "x" * 60]


def png(file):
    with open(file, "rb") as f:
        return f.read(8) == b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def drawn_in_style():
    with plt.rc_context(STYLE):
        yield
    plt.close("all")


def rendered(figure, tmp_path):
    """The figure after it was really drawn: odd text fails only then."""
    figure.savefig(tmp_path / "figure.png")
    return figure


def judged(classes, protocol="linear", dataset="shapes", **more):
    """An eval result of a classifier that is right in most cases."""
    c = len(classes)
    counts = RNG.integers(0, 4, (c, c)) + np.diag(RNG.integers(5, 40, c) * max(1, c // 4))
    share = 100 * counts.diagonal() / counts.sum(1)
    middle = (np.arange(15) + 0.5) / 0.15
    count = RNG.integers(0, 50, 15) * (np.arange(15) > 2)
    return {
        "protocol": protocol,
        "settings": {"l2": [1e-6, 1e-5, 1e-4, 1e-3], "max_iter": 100},
        "dataset": dataset,
        "train_images": 1000,
        "test_images": int(counts.sum()),
        "classes": classes,
        "features": {"net": "student", "layer": None, "blocks": 1, "pool": "auto", "dim": 256},
        "seed": 0,
        "epochs": 50,
        "top1": float(share.mean()),
        "top1_interval": [float(share.mean()) - 1, float(share.mean()) + 1],
        "top5": 99.8,
        "per_class": dict(zip(classes, share.tolist(), strict=True)),
        "confusion": counts.tolist(),
        "calibration": {"ece": 4.2, "confidence": middle.tolist(), "accuracy": (0.9 * middle).tolist(), "count": count.tolist()},
        "final": {"epoch": 50, "top1": float(share.mean())},
        "best": {"epoch": 45, "top1": float(share.mean()) + 0.3},
        "seconds": {"features": 3.1, "protocol": 5.2},
        **more,
    }


def unlabelled(**more):
    s = np.geomspace(30, 0.01, 128)
    return {
        "protocol": "health",
        "dataset": "shapes",
        "rankme": 61.3,
        "effective_rank": 43.8,
        "feature_std": 0.71,
        "alignment": 0.31,
        "uniformity": -3.1,
        "singular_values": s.tolist(),
        "dim_std": np.linspace(2, 0.2, 128).tolist(),
        "cka": {"names": ["student", "untrained", "raw pixels"], "matrix": [[1, 0.4, 0.2], [0.4, 1, 0.35], [0.2, 0.35, 1]]},
        **more,
    }


FEW = [
    {"labels": "1 %", "per_draw": [41.0, 45.5, 43.2], "top1": 43.2, "std": 2.2, "per_class": {"cat": 4.0}, "confusion": [[31337]]},
    {"labels": "10 %", "per_draw": [71.0, 72.5, 70.2], "top1": 71.2, "std": 1.2},
]


# ------------------------------------------------------------------------------------------------ scores
@pytest.mark.parametrize("count", [1, 2, 10, 20, 21, 100, 200])
def test_confusion_of_any_number_of_classes(count, tmp_path):
    names = (ODD + [f"class {i}" for i in range(count)])[:count]
    result = judged(names)
    figure = rendered(scores.confusion(result["confusion"], names), tmp_path)
    ax = figure.axes[0]
    shares = np.array(result["confusion"]) / np.sum(result["confusion"], 1, keepdims=True) * 100
    np.testing.assert_allclose(ax.images[0].get_array(), shares)
    assert len(ax.texts) == (np.sum(shares >= 0.5) if count <= 20 else 0)
    named = {t.get_text() for t in ax.get_yticklabels()} & {f"class {i}" for i in range(count)}
    assert len(named) == (max(0, count - 5) if count <= 60 else 0)


def test_a_class_without_images_has_no_share(tmp_path):
    figure = rendered(scores.confusion([[0, 0], [1, 3]], ["a", "b"]), tmp_path)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array().filled(-1), [[-1, -1], [25, 75]])
    assert [t.get_text() for t in figure.axes[0].texts] == ["25", "75"]
    assert scores.confusion([], []) is None


def test_calibration_shows_filled_bins_alone(tmp_path):
    found = {"ece": 3.25, "confidence": [0.0, 55.0, 90.0], "accuracy": [0.0, 50.0, 95.0], "count": [0, 10, 30]}
    figure = rendered(scores.calibration(found), tmp_path)
    top, bottom = figure.axes
    assert [p.get_height() for p in top.patches] == [50.0, 95.0]
    assert [p.get_height() for p in bottom.patches] == [0.0, 25.0, 75.0]
    assert "3.2 %" in top.get_title(loc="left")
    assert scores.calibration({**found, "count": [0, 0, 0]}) is None


@pytest.mark.parametrize("count", [1, 5, 40, 41, 200])
def test_classes_are_sorted_and_of_many_the_best_and_worst_are_shown(count, tmp_path):
    names = (ODD + [f"class {i}" for i in range(count)])[:count]
    accuracies = dict(zip(names, RNG.uniform(0, 100, count), strict=True)) | {"no images": None, "nan": np.nan}
    figure = rendered(scores.per_class(accuracies), tmp_path)
    bars = [p.get_width() for p in figure.axes[0].patches]
    wanted = sorted((v for v in accuracies.values() if v is not None and np.isfinite(v)), reverse=True)
    assert bars == pytest.approx(wanted if count <= 40 else wanted[:20] + wanted[-20:])
    assert any(f"{count - 40} classes between" in t.get_text() for t in figure.axes[0].texts) == (count > 40)
    assert f"{np.mean(wanted):.1f}" in figure.axes[0].get_legend().get_texts()[0].get_text()
    assert scores.per_class({"a": None}) is None


def test_few_labels_show_mean_and_draws(tmp_path):
    figure = rendered(scores.few_shot(FEW, ("linear", 94.1)), tmp_path)
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1 %", "10 %"]
    assert "linear, all labels: 94.1 %" in [t.get_text() for t in ax.get_legend().get_texts()]
    assert rendered(scores.few_shot([{"labels": "$5$ per class", "top1": 20.0, "std": None}]), tmp_path)
    assert scores.few_shot([{"labels": "1 %", "top1": None}]) is None


def test_the_spectrum_marks_its_ranks_and_leaves_out_what_is_no_number(tmp_path):
    figure = rendered(scores.spectrum(unlabelled()), tmp_path)
    told = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert told == ["singular values, centred", "standard deviation of dimensions", "effective rank: 43.8", "RankMe: 61.3"]
    assert figure.axes[0].get_yscale() == "log"
    assert float(figure.axes[0].lines[0].get_ydata()[0]) == 1.0
    some = scores.spectrum(unlabelled(singular_values=[None] * 4, dim_std=[2.0, 1.0, 0.0], rankme=None, effective_rank=np.nan))
    assert len(rendered(some, tmp_path).axes[0].lines) == 1
    assert rendered(scores.spectrum({"singular_values": [3.0]}), tmp_path)
    assert scores.spectrum({"singular_values": [0.0, 0.0], "dim_std": [np.nan]}) is None


def test_cka_tells_its_numbers(tmp_path):
    figure = rendered(scores.cka({"names": ["$a", "b" * 50], "matrix": [[1.0, None], [0.25, 1.0]]}), tmp_path)
    assert [t.get_text() for t in figure.axes[0].texts] == ["1.00", "0.25", "1.00"]
    assert rendered(scores.cka({"names": ["one"], "matrix": [[1.0]]}), tmp_path)
    assert scores.cka({"names": ["a"], "matrix": [[1.0, 0.5], [0.5, 1.0]]}) is None


# ------------------------------------------------------------------------------------------------ pictures
def arrays(n=8, heads=3, classes=10, **more):
    """What a transformer's data.npz holds, with n images."""
    labels = RNG.integers(-1, classes, 300)
    return {
        "originals": RNG.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8),
        "view_0": RNG.integers(0, 256, (n, 3, 16, 16), dtype=np.uint8),
        "map": RNG.normal(size=(300, 2)) + labels[:, None],
        "map_method": np.array("tsne"),
        "labels": labels,
        "classes": np.array((ODD + [f"class {i}" for i in range(classes)])[:classes]),
        "index": RNG.integers(0, 300, (n, 8)),
        "queries": RNG.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8),
        "neighbours": RNG.integers(0, 256, (n * 8, 3, 32, 32), dtype=np.uint8),
        "query_labels": RNG.integers(0, 3, n),
        "neighbour_labels": RNG.integers(0, 3, (n, 8)),
        "attention": RNG.random((n, heads, 8, 8), dtype=np.float32),
        "patches": RNG.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8),
        **more,
    }


def placed(ax):
    """The images of a mosaic by row and column."""
    return {(int(top), int(left)): i for i in ax.images for left, _, _, top in [i.get_extent()]}


@pytest.mark.parametrize(("n", "heads"), [(8, 3), (1, 1), (2, 16)])
def test_attention_shows_the_mean_and_up_to_six_heads(n, heads, tmp_path):
    data = arrays(n, heads)
    (ax,) = rendered(pictures.attention(data), tmp_path).axes
    names = ["image", "mean", *(f"head {h + 1}" for h in range(min(heads, 6)))]
    assert [t.get_text() for t in ax.texts] == names
    shown = placed(ax)
    assert [*shown] == [(r, c) for r in range(n) for c in range(len(names))]
    np.testing.assert_allclose(shown[n - 1, 1].get_array(), data["attention"][-1].mean(0))
    np.testing.assert_allclose(shown[n - 1, 2].get_array(), data["attention"][-1, 0])
    assert pictures.attention({**data, "attention": data["attention"][:0]}) is None


@pytest.mark.parametrize("n", [1, 8])
def test_patches_lie_below_their_images(n, tmp_path):
    data = arrays(n)
    (ax,) = rendered(pictures.patches(data), tmp_path).axes
    np.testing.assert_array_equal(placed(ax)[1, n - 1].get_array(), data["patches"][-1].transpose(1, 2, 0))
    assert [t.get_text() for t in ax.texts] == ["image", "8 × 8"]


@pytest.mark.parametrize("classes", [1, 10, 200])
def test_the_map_names_its_method_and_classes(classes, tmp_path):
    figure = rendered(pictures.feature_map(arrays(classes=classes)), tmp_path)
    assert "t-SNE" in figure.axes[0].get_title(loc="left")
    assert (figure.axes[0].get_legend() is None) == (classes > 20)
    nan = np.full((300, 2), np.nan)
    for other in ({"map": nan}, {"labels": np.full(300, -1)}, {"map_method": np.array("$odd_$")}):
        assert rendered(pictures.feature_map(arrays(**other)), tmp_path)


def captioned(pairs=5, asked=4, found=3):
    """What data.npz of a method with words holds besides."""
    said, shown = np.array([*ODD[:4], "a " * 100]), RNG.integers(0, 256, (30, 3, 32, 32), dtype=np.uint8)
    return {
        "pair_images": shown[:pairs], "pair_captions": said[:pairs], "pair_cosine": RNG.uniform(-1, 1, (pairs, pairs)),
        "asked": said[:asked], "found": shown[: asked * found], "found_right": RNG.random((asked, found)) < 0.5,
        "plane": RNG.normal(size=(60, 2)),
    }  # fmt: skip


@pytest.mark.parametrize(("count", "found"), [(5, 3), (1, 1)])
def test_pairs_and_what_captions_find(count, found, tmp_path):
    data = captioned(count, count, found)
    figure = rendered(word_pictures.pairs(data), tmp_path)
    matrix = figure.axes[-1]
    np.testing.assert_allclose(matrix.images[0].get_array(), data["pair_cosine"].T)  # a row for each caption
    told = [float(t.get_text()) for t in matrix.texts]
    np.testing.assert_allclose(told, data["pair_cosine"].flatten(), atol=0.0051)
    assert len(matrix.get_yticklabels()) == count
    figure = rendered(word_pictures.found(data), tmp_path)
    (ax,) = figure.axes
    assert [*placed(ax)] == [(r, c + 2) for r in range(count) for c in range(found)]
    assert [(int(p.get_y()), int(p.get_x())) for p in ax.patches] == [*placed(ax)]
    frames = [p.get_edgecolor()[1] > p.get_edgecolor()[0] for p in ax.patches]  # greener than red
    assert frames == data["found_right"].flatten().tolist()
    same = {**data, "pair_cosine": np.ones((count, count))}  # a collapse
    assert rendered(word_pictures.pairs(same), tmp_path)
    assert [f({}) for f in (word_pictures.pairs, word_pictures.found, word_pictures.plane)] == [None] * 3


def test_letters_that_the_font_lacks_are_no_warning(tmp_path):
    data = {**captioned(), "asked": np.array(["日本語", "a"]), "found_right": np.ones((2, 3), dtype=bool)}
    data["found"] = data["found"][:6]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert png(save(word_pictures.found(data), tmp_path / "found.png"))


def test_images_and_captions_are_told_apart_in_the_plane(tmp_path):
    data = captioned()
    images, captions = rendered(word_pictures.plane(data), tmp_path).axes[0].collections
    np.testing.assert_array_equal(images.get_offsets(), data["plane"][:30])
    np.testing.assert_array_equal(captions.get_offsets(), data["plane"][30:])
    assert word_pictures.plane({"plane": data["plane"][:, :1]}) is None


def test_temperature_bias_and_gap_are_drawn(tmp_path):
    steps = np.array([1, 5])
    known = {"train/logit_scale": (steps, np.array([10.0, 20.0])), "train/logit_bias": (steps, np.array([-10.0, -9.0]))}
    temperature, bias = rendered(figures.words(known), tmp_path).axes
    np.testing.assert_allclose(temperature.lines[0].get_ydata(), [0.1, 0.05])
    np.testing.assert_allclose(bias.lines[0].get_ydata(), [-10, -9])
    assert figures.words({"train/loss": known["train/logit_scale"]}) is None


# ------------------------------------------------------------------------------------------------ pages
@pytest.fixture
def run(tmp_path):
    """A run folder without eval results."""
    summary = {
        "name": "dino_vit_t_shapes", "verdict": "Healthy: all is well.", "final": {"knn_top1": 91.0}, "baselines": {}, "num_features": 192,
        "health": {"effective_rank": 40.0}, "best": {"epoch": 4, "knn_top1": 91.5}, "epochs": 5, "steps": 50, "global_batch": 64, "seed": 0,
        "parameters": 5_500_000, "stem": "patches of 4 px", "image_size": 32, "evaluation": "kNN", "config_hash": "0123", "commit": None,
        "command": "ssl-zoo method=dino", "versions": {"torch": "2.14"},
        "data": {"train": 1000, "test": 200, "classes": 10, "resident": True, "skipped": [], "skipped_count": 0},
        "seconds": {"total": 60.0, "training": 40.0, "evaluation": 10.0, "data_and_model": 10.0},
        "speed": {"images_per_s": 1000.0, "devices": 1, "device": "cpu", "precision": "32", "peak_memory_mib": None},
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "metrics.csv").write_text("step,train/loss,eval/knn_top1\n1,2.5,\n9,1.5,91.0\n")
    (tmp_path / "figures").mkdir()
    return tmp_path


def evaluated(run, **results):
    (run / "eval").mkdir(exist_ok=True)
    for name, result in results.items():
        (run / "eval" / f"{name}.json").write_text(result if isinstance(result, str) else json.dumps(result))


def test_a_page_without_results_has_no_evaluation(run):
    text = write_report(run).read_text()
    assert "Evaluation" not in text
    assert evaluation_section(run) == ""
    assert text.count("data:image/png") == 1
    assert not list(run.rglob("*.part"))


def test_the_page_tells_every_result(run):
    np.savez(run / "figures" / "data.npz", **arrays())
    ks = [{"k": 20, "temperature": 0.07, "top1": 91.0}, {"k": 200, "temperature": 0.07, "top1": 88.25}]
    evaluated(
        run,
        linear=judged(["a", "b", "<c>"]),
        knn=judged(["a", "b", "<c>"], "knn", results=ks, settings={}),
        few_shot={"protocol": "few_shot", "dataset": "shapes", "results": FEW, "settings": {"shares": [0.01, 0.1], "draws": 3}},
        retrieval={"protocol": "retrieval", "dataset": "shapes", "recall_at_1": 90.5, "map_at_r": 33.25, "queries": 200},
        health=unlabelled(),
        **{"linear-stl10": judged(["x"], dataset="stl10")},
    )
    text = write_report(run).read_text()
    names = re.findall(r'<img alt="(\w+)"', text)
    assert names == ["curves", "map", "neighbours", "attention", "patches", "views",
                     "confusion", "calibration", "per_class", "few_shot", "spectrum", "cka"]  # fmt: skip
    assert all(png(f) for f in (run / "figures").glob("*.png"))
    for word in ("<h2>Evaluation</h2>", "stl10", "43.2 ± 2.2", "k 200, temperature 0.07", "88.2", "recall@1 90.5", "map@r 33.2",
                 "final", "after epoch 45", "l2 1e-06 … 0.001 (4), max iter 100", "rankme 61.3", "8.3", "linear on shapes"):  # fmt: skip
        assert word in text, word
    assert "Damaged" not in text
    assert "31337" not in text  # confusion of few labels
    protocols = re.findall(r"<tr><td>([a-z_]+)</td><td>(\w+)</td>", text.partition("<h2>The run")[0])
    assert protocols == [("linear", "shapes"), ("knn", "shapes"), ("few_shot", "shapes"), ("retrieval", "shapes"), ("health", "shapes"),
                         ("linear", "stl10")]  # fmt: skip
    assert not list(run.rglob("*.part"))


def test_the_confusion_of_words_is_pictured_beside_the_probe_s(run):
    names = ["cat", "dog"]
    evaluated(run, zero_shot=judged(names, "zero_shot"))
    assert "by words alone" not in evaluation_section(run)
    evaluated(run, linear=judged(names))
    told = evaluation_section(run)
    assert told.count("What is taken for what") == 2
    assert "by words alone: zero_shot on shapes" in told


def test_a_transferred_result_is_pictured_when_there_is_no_other(run):
    evaluated(run, **{"knn-stl10": judged(["x", "y"], "knn", "stl10")})
    assert "What is taken for what: knn on stl10." in evaluation_section(run)


GOOD = judged(["a", "b"])


@pytest.mark.parametrize(
    "bad",
    [
        "",
        '{"protocol": "linear", "data',
        "[]",
        "3",
        "[" * 100_000,
        json.dumps({"protocol": "linear"}),
        json.dumps({"protocol": ["linear"], "dataset": "shapes"}),
        json.dumps({**GOOD, "top1": "94"}),
        json.dumps({**GOOD, "top1_interval": [1]}),
        json.dumps({**GOOD, "settings": [1, 2]}),
        json.dumps({**GOOD, "final": 3}),
        json.dumps({**GOOD, "seconds": "long"}),
        json.dumps({**GOOD, "confusion": [[1, 2], [3]]}),
        json.dumps({**GOOD, "confusion": {"a": 1}}),
        json.dumps({**GOOD, "classes": 3}),
        json.dumps({**GOOD, "calibration": {"ece": None, "confidence": [1.0], "accuracy": [1.0], "count": [1]}}),
        json.dumps({**GOOD, "calibration": {"ece": 1.0}}),
        json.dumps({**GOOD, "calibration": {"ece": 1.0, "confidence": [1.0], "accuracy": [1.0], "count": [1, 2]}}),
        json.dumps({**GOOD, "per_class": [3.0]}),
        json.dumps({**GOOD, "per_class": {"a": "good"}}),
        json.dumps({"protocol": "few_shot", "dataset": "shapes", "results": [3]}),
        json.dumps({"protocol": "few_shot", "dataset": "shapes", "results": {"labels": 3}}),
        json.dumps(unlabelled(singular_values="many")),
        json.dumps(unlabelled(cka=[1, 2])),
        json.dumps(unlabelled(cka={"names": ["a"], "matrix": [["b"]]})),
    ],
    ids=range(25),
)
def test_a_damaged_result_is_noted_and_the_rest_is_shown(run, bad):
    evaluated(run, linear=bad, knn=judged(["a", "b"], "knn"))
    (run / "eval" / "health.json.part").write_text("{")
    text = write_report(run).read_text()
    assert "Damaged, so what they hold is not all here: eval/linear.json." in text
    assert "<td>knn</td>" in text


def test_results_of_any_value_are_shown(run):
    evaluated(
        run,
        linear={**judged(ODD), "top5": None, "per_class": dict.fromkeys(ODD), "top1_interval": None, "final": {"epoch": 3, "top1": 2.0}},
        health={**unlabelled(), "rankme": None, "singular_values": [None, 1.0], "cka": {"names": ODD, "matrix": np.eye(5).tolist()}},
    )
    text = write_report(run).read_text()
    assert "Damaged" not in text
    assert re.findall(r'<img alt="(\w+)"', text) == ["curves", "confusion", "calibration", "spectrum", "cka"]


def test_the_caption_of_the_curves_names_what_was_measured():
    measured = {"eval/knn_top1": 1}
    both = {"untrained": {"knn_top1": 20.0}, "raw_pixels": {"knn_top1": 30.0}}
    assert curves_caption(measured, {"baselines": both}).endswith("against raw pixels and the untrained backbone.")
    assert curves_caption(measured, {"baselines": {"untrained": {"knn_top1": 2.0}}}).endswith("against the untrained backbone.")
    assert curves_caption(measured, {"baselines": {}}) == "Loss and kNN accuracy while training."
    assert curves_caption({}, {"baselines": both}) == "Loss while training."


def test_without_labels_captions_speak_of_none(run):
    data = {k: v for k, v in arrays().items() if "labels" not in k}
    np.savez(run / "figures" / "data.npz", **data)
    captions = {name: caption for name, (_, caption) in draw_all(run).items()}
    assert captions["map"] == "Test features."
    assert "same class" not in captions["neighbours"]


def test_a_page_escapes_its_title_alone():
    text = page("<a> & b", "<p>{body}</p>", style="p { color: red; }")
    assert "<title>&lt;a&gt; &amp; b</title>" in text
    assert "<h1>&lt;a&gt; &amp; b</h1>" in text
    assert "<p>{body}</p>" in text
    assert "p { color: red; }</style></head>" in text


def test_settings_are_said_in_words():
    settings = {"l2": [1e-6, 1e-5, 0.1, 1.0], "ks": [10, 20], "flip": True, "crop": None, "knn": {"k": 20}, "name": "sgd", "none": []}
    said = "l2 1e-06 … 1 (4), ks 10 | 20, flip yes, crop none, knn (k 20), name sgd, none "
    assert words(settings) == said
