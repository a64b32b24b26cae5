"""Zero-shot classification and retrieval between images and captions, against brute force in float64."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_zoo.data.shapes import COMBINATIONS, Shapes, _colours, _name
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation import words_retrieval as wr
from ssl_zoo.evaluation.scores import wilson
from ssl_zoo.evaluation.words_retrieval import chance_at, chance_median, first_ranks, words_retrieval
from ssl_zoo.evaluation.zero_shot import class_embeddings, seen_and_held_out, zero_shot
from ssl_zoo.word_lists import word_list

pytestmark = pytest.mark.usefixtures("one_thread")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------- zero-shot
def by_hand(images, prompts, labels):
    """The predicted classes, one image and one sentence at a time."""
    means = []
    for of_class in prompts.numpy():
        mean = np.mean([p / np.linalg.norm(p) for p in of_class], 0)
        means.append(mean / np.linalg.norm(mean))
    return [[float(np.dot(x / np.linalg.norm(x), m)) for m in means] for x in images.numpy()]


def test_zero_shot_is_that_of_brute_force():
    prompts, labels = randn(9, 4, 6, seed=1) * randn(9, 4, 1, seed=2).exp(), torch.arange(60) % 9
    images = prompts.mean(1)[labels] + 0.8 * randn(60, 6) * randn(60, 1, seed=5).exp()
    classes = [f"c{i}" for i in range(9)]
    found = zero_shot(images, prompts, labels, classes, chunk=7)
    cosine = by_hand(images, prompts, labels)
    ranked = [sorted(range(9), key=lambda c, row=row: -row[c]) for row in cosine]
    assert 20 < found["top1"] < 95
    assert found["top1"] == pytest.approx(100 * np.mean([r[0] == y for r, y in zip(ranked, labels.tolist(), strict=True)]))
    assert found["top5"] == pytest.approx(100 * np.mean([y in r[:5] for r, y in zip(ranked, labels.tolist(), strict=True)]))
    assert [sum(row) for row in found["confusion"]] == torch.bincount(labels).tolist()
    assert (found["chance_top1"], found["chance_top5"]) == (pytest.approx(100 / 9), pytest.approx(500 / 9))
    alone = [zero_shot(images, prompts[:, t : t + 1], labels, classes)["top1"] for t in range(4)]
    assert found["each_template_top1"] == alone
    assert (found["one_template_top1"], found["mean_template_top1"]) == (alone[0], pytest.approx(sum(alone) / 4))
    assert "one_template_top1" not in zero_shot(images, prompts[:, :1], labels, classes)


def test_sentences_are_normalised_before_and_after_their_mean():
    """A long sentence does not outvote others, and a class whose sentences agree is not favoured over one whose sentences do not."""
    one, two = torch.tensor([[10.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    prompts = torch.stack([one, two]).double()
    torch.testing.assert_close(class_embeddings(prompts)[0], torch.tensor([0.5, 0.5]).double() * math.sqrt(2))
    image = torch.tensor([[0.45, 0.9]]).double()  # nearer to (1, 1) than to (0, 1) in angle
    predicted = [zero_shot(image, prompts, torch.tensor([y]), ["a", "b"])["top1"] for y in (0, 1)]
    assert predicted == [100.0, 0.0]
    without_first = torch.nn.functional.normalize(prompts.mean(1), dim=-1)
    without_last = torch.nn.functional.normalize(prompts, dim=-1).mean(1)
    for wrong in (without_first, without_last):
        assert int((image @ wrong.T).argmax()) == 1


def test_of_equally_near_classes_the_first_wins():
    found = zero_shot(torch.ones(8, 3), torch.ones(8, 2, 3), torch.arange(8), [str(i) for i in range(8)])
    assert found["top1"] == pytest.approx(12.5)
    assert found["top5"] == pytest.approx(62.5)
    assert [row[0] for row in found["confusion"]] == [1] * 8
    assert found["each_template_top1"] == [12.5, 12.5]


def test_classes_that_were_seen_are_told_apart_from_those_held_out():
    confusion = [[3, 1, 0], [1, 1, 2], [5, 0, 0]]
    found = seen_and_held_out(confusion, ["a", "b", "c"], ["c", "b", "elsewhere"])
    assert (found["seen_top1"], found["seen_images"]) == (75.0, 4)
    assert (found["held_out_top1"], found["held_out_images"], found["held_out"]) == (pytest.approx(100 / 9), 9, ["b", "c"])
    assert seen_and_held_out(confusion, ["a", "b", "c"], ["elsewhere"]) == {}
    assert seen_and_held_out([[1, 0], [0, 0]], ["a", "b"], ["b"])["held_out_top1"] is None


# ---------------------------------------------------------------------------------------------- retrieval
def slow_ranks(similar, right):
    """The rank of the first right candidate, wrong ones that are as near counting as before it."""
    return [1 + sum(row[c] >= max(row[r] for r in good) for c in range(len(row)) if c not in good) for row, good in zip(similar, right)]  # noqa: B905


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ranks_are_those_of_brute_force(data):
    """Any number of captions, those that images share among them, and coarse embeddings, which are often equally near."""
    images, sentences = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    numbers = st.integers(-2, 2)
    grid = [data.draw(st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=n, max_size=n)) for n in (images, sentences)]
    q, c = (torch.nn.functional.normalize(torch.tensor(x, dtype=torch.float64), dim=-1) for x in grid)
    right = [data.draw(st.sets(st.integers(0, sentences - 1), min_size=1)) for _ in range(images)]
    pairs = torch.tensor([(i, s) for i, own in enumerate(right) for s in own]).T
    pairs = pairs[:, torch.randperm(pairs.shape[1], generator=torch.Generator().manual_seed(0))]
    similar = (q @ c.T).mul(1e9).round().tolist()  # equal but for rounding is equal
    block, wr.BLOCK = wr.BLOCK, data.draw(st.integers(1, 5))
    try:
        assert first_ranks(q, c, pairs, chunk=data.draw(st.integers(1, 4))).tolist() == slow_ranks(similar, right)
    finally:
        wr.BLOCK = block


def test_retrieval_counts_as_the_papers_do():
    """Five captions an image: each is a query, any of them is right for its image."""
    images = randn(30, 8)
    texts = images.repeat_interleave(5, 0) + 1.5 * randn(150, 8, seed=3)
    pairs = torch.stack([torch.arange(30).repeat_interleave(5), torch.arange(150)])
    to_text, to_image = words_retrieval(images, texts, pairs, [1, 5, 10], chunk=7)
    unit = torch.nn.functional.normalize
    similar = (unit(images, dim=-1) @ unit(texts, dim=-1).T).numpy()
    places = np.argsort(-similar, 1)
    any_of = [min(int(np.where(places[i] == t)[0][0]) for t in range(5 * i, 5 * i + 5)) for i in range(30)]
    own = [int(np.where(np.argsort(-similar[:, t]) == t // 5)[0][0]) for t in range(150)]
    for found, ranks, candidates, n in ((to_text, any_of, 150, 30), (to_image, own, 30, 150)):
        assert (found["queries"], found["candidates"]) == (n, candidates)
        for k in (1, 5, 10):
            assert found[f"recall_at_{k}"] == pytest.approx(100 * np.mean(np.array(ranks) < k))
        assert found["median_rank"] == np.median(ranks) + 1
    assert to_text["recall_at_1"] != pytest.approx(100 * np.mean([places[i][0] == 5 * i for i in range(30)]))  # the first caption alone
    assert (to_text["direction"], to_image["direction"]) == ("image to text", "text to image")
    assert to_image["chance_at_5"] == pytest.approx(100 * 5 / 30)
    assert to_text["chance_at_1"] == pytest.approx(100 * 5 / 150)
    assert to_image["top1_interval"] == wilson(to_image["top1"], 30)  # images, not captions


def test_a_network_that_says_the_same_of_everything_finds_nothing():
    pairs = torch.arange(40).expand(2, -1)
    for dtype in (torch.float32, torch.float64):
        alike = torch.full((40, 16), 0.3, dtype=dtype) + 1e-9 * randn(40, 16).to(dtype)
        for found in words_retrieval(alike, alike.flip(0), pairs, [1, 10]):
            assert (found["recall_at_1"], found["recall_at_10"], found["median_rank"]) == (0.0, 0.0, 40.0)


def test_captions_of_one_wording_are_one_caption():
    """Images 0 and 1 have the caption 0, in which a network that knows all cannot tell them apart."""
    sentences = torch.eye(3, dtype=torch.float64)
    images = sentences[[0, 0, 1, 2]]
    pairs = torch.tensor([[0, 1, 1, 2, 3], [0, 0, 0, 1, 2]])  # image 1 has its caption twice
    to_text, to_image = words_retrieval(images, sentences, pairs, [1])
    assert (to_text["recall_at_1"], to_text["queries"], to_text["candidates"]) == (100.0, 4, 3)
    assert (to_image["recall_at_1"], to_image["queries"], to_image["candidates"]) == (100.0, 5, 4)
    assert to_image["chance_at_1"] == pytest.approx(100 * (3 * 2 / 4 + 2 * 1 / 4) / 5)
    assert to_text["chance_at_1"] == pytest.approx(100 / 3)


def test_images_without_a_caption_are_candidates_alone():
    images = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]).double()
    to_text, to_image = words_retrieval(images, torch.tensor([[1.0, 0.2], [0.0, 1.0]]).double(), torch.tensor([[0, 2], [0, 1]]), [1, 2])
    assert (to_text["queries"], to_image["candidates"]) == (2, 3)
    assert [to_image[f"recall_at_{k}"] for k in (1, 2)] == [50.0, 100.0]


@pytest.mark.parametrize(("right", "candidates"), [(1, 7), (2, 7), (3, 5), (5, 5)])
def test_chance_is_that_of_all_orders(right, candidates):
    for k in range(1, candidates + 2):
        draws = list(combinations(range(candidates), min(k, candidates)))
        share = np.mean([any(c < right for c in d) for d in draws])
        assert float(chance_at(k, torch.tensor([right]), candidates)) == pytest.approx(share, abs=1e-9)
    middle = chance_median(torch.tensor([right, right]), candidates)
    assert float(chance_at(middle, torch.tensor([right]), candidates)) >= 0.5 - 1e-9
    assert middle == 1 or float(chance_at(middle - 1, torch.tensor([right]), candidates)) < 0.5


def test_a_random_network_is_at_chance():
    pairs = torch.stack([torch.arange(300).repeat_interleave(3), torch.arange(900)])
    for found in words_retrieval(randn(300, 32), randn(900, 32, seed=1), pairs, [1, 10, 50]):
        assert found["recall_at_50"] == pytest.approx(found["chance_at_50"], abs=6)
        assert found["median_rank"] == pytest.approx(found["chance_median_rank"], rel=0.25)


# ---------------------------------------------------------------------------------------------- shapes
HELD = ["red star", "blue ring", "green circle"]


def combination(caption):
    words = caption.split(" on a ")[0].split()
    return f"{words[2]} {words[4]}"


def test_shapes_that_are_held_out_are_missing_from_train_alone():
    usual, apart = (Shapes(train_size=400, test_size=300, held_out=h, labels="colour_shape") for h in ([], HELD))
    train, full, test = apart.load("train"), usual.load("train"), apart.load("test")
    assert len(train) == 400
    names = [train.classes[i] for i in train.labels.tolist()]
    assert names == [combination(c[0]) for c in train.captions]
    assert not set(names) & set(HELD)
    assert set(HELD) & {full.classes[i] for i in full.labels.tolist()}
    kept = [i for i, c in enumerate(full.captions) if combination(c[0]) not in HELD]
    assert torch.equal(train.pixels[: len(kept)], full.pixels[kept])
    assert train.captions[: len(kept)] == [full.captions[i] for i in kept]
    assert torch.equal(test.pixels, usual.load("test").pixels)
    assert set(HELD) & {test.classes[i] for i in test.labels.tolist()}


def test_shapes_can_be_labelled_by_what_they_are():
    by = {kind: Shapes(train_size=200, labels=kind).load("train") for kind in ("shape", "colour", "colour_shape")}
    shape, colour, both = (by[k] for k in ("shape", "colour", "colour_shape"))
    assert torch.equal(shape.pixels, both.pixels)
    assert both.classes == COMBINATIONS
    for s, c, b, caption in zip(shape.labels, colour.labels, both.labels, both.captions, strict=True):
        assert f"{colour.classes[c]} {shape.classes[s]}" == both.classes[b] == combination(caption[0])


def test_colours_are_those_of_the_captions():
    hues = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    names = [*dict.fromkeys(c.split()[0] for c in COMBINATIONS)]
    assert [names[i] for i in _colours(hues).tolist()] == [_name(h) for h in hues.tolist()]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"labels": "size"}, "labels is size; set it to one of shape, colour, colour_shape"),
        ({"held_out": ["red stars"]}, "did you mean 'red star'"),
        ({"held_out": ["no such thing"]}, "takes a colour"),
        ({"held_out": ["star red"]}, "no combination"),
    ],
)
def test_shapes_refuse_what_they_cannot_hold_out(fields, told):
    with pytest.raises(UserError, match=told):
        Shapes(**fields)


def test_shapes_need_something_to_train_on():
    assert Shapes(train_size=3, held_out=COMBINATIONS[1:]).load("train").captions[0][0].split()[2:5:2] == COMBINATIONS[0].split()
    with pytest.raises(UserError, match="next to nothing to train on"):
        Shapes(train_size=3, held_out=COMBINATIONS).load("train")


# ---------------------------------------------------------------------------------------------- lists of words
def test_words_are_read_from_a_list_or_a_file(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("\ufeff cat \n\n hot dog\n", encoding="utf-8")
    assert word_list(str(file), "labels") == word_list(["cat", " hot dog"], "labels") == ["cat", "hot dog"]
    for given_, told in (
        ([], "no word"),
        (["a", " "], "empty word .number 2"),
        (str(tmp_path / "nowhere"), "is no file"),
        (str(tmp_path), "is no file"),
    ):
        with pytest.raises(UserError, match=told):
            word_list(given_, "labels")
    for content, told in ((b"\xff\xfe\x00", "not UTF-8"), (b"a\0b", "no text"), (b"\n \n", "no word")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=told):
            word_list(str(file), "labels")
