"""Methods with words: which caption an image shows, the towers, and what a step leaves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssl_zoo.build import build_tokens
from ssl_zoo.cli import main
from ssl_zoo.data.images import Images
from ssl_zoo.data.loader import Loader
from ssl_zoo.data.tokens import Tokens
from ssl_zoo.errors import UserError
from ssl_zoo.methods.clip import CLIP
from ssl_zoo.methods.siglip import SigLIP
from ssl_zoo.nn.text import END, TextTower, tokenize

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = {"width": 16, "heads": 2, "layers": 1, "context": 8}


class Net(nn.Sequential):
    num_features = 12

    def __init__(self):
        super().__init__(nn.Conv2d(3, 12, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def batch(count=7):
    g = torch.Generator().manual_seed(0)
    tokens, _ = tokenize([f"a picture of the number {n}" for n in range(count)], 8)
    return [torch.randn(count, 3, 8, 8, generator=g)], {"tokens": tokens}


# ------------------------------------------------------------------------------------ captions of an epoch
def some_tokens(counts):
    count = torch.tensor(counts)
    start = count.cumsum(0) - count
    return Tokens(torch.arange(int(count.sum()), dtype=torch.int32)[:, None].expand(-1, 3).contiguous(), start, count)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_an_image_shows_one_of_its_captions(counts, seed, epoch):
    tokens = some_tokens(counts)
    rows = tokens.drawn(seed, epoch)
    assert ((rows >= tokens.start) & (rows < tokens.start + tokens.count)).all()
    assert torch.equal(rows, tokens.drawn(seed, epoch))


def test_every_caption_is_shown_as_often_as_the_others():
    tokens = some_tokens([5] * 100)
    shown = torch.bincount(torch.cat([tokens.drawn(0, epoch) for epoch in range(200)]), minlength=500)
    assert shown.min() > 15  # 40 each; binomial, deviation 5.7
    assert shown.max() < 70
    assert shown.double().mean() == 40


def test_the_loader_brings_captions_that_do_not_depend_on_ranks_or_on_when_it_began():
    tokens = some_tokens([3] * 24)
    images = Images(torch.zeros(24, 3, 4, 4, dtype=torch.uint8), None, None, 4)

    def epoch(number, **options):
        loader = Loader(images, 4, 1, tokens=tokens, **options)
        loader.set_epoch(number)
        return loader, {int(i): int(t) for b in loader for i, t in zip(b["index"], b["tokens"][:, 0], strict=True)}

    _, whole = epoch(1)
    assert len(whole) == 24
    assert all(t // 3 == i for i, t in whole.items())
    assert whole != epoch(2)[1]
    assert {**epoch(1, rank=0, world_size=2)[1], **epoch(1, rank=1, world_size=2)[1]} == whole
    loader = Loader(images, 4, 1, tokens=tokens)
    loader.set_epoch(1)
    for _ in zip(loader, range(3), strict=False):
        state = loader.state_dict()
    again = Loader(images, 4, 1, tokens=tokens)
    again.load_state_dict(state)
    rest = {int(i): int(t) for b in again for i, t in zip(b["index"], b["tokens"][:, 0], strict=True)}
    assert len(rest) in (8, 12)
    assert rest.items() <= whole.items()


def test_captions_that_images_share_are_tokenised_once():
    shared, own = ["a cat", "one cat"], ["a dog"]
    images = Images(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), None, None, 4, [shared, own, shared])
    tokens = build_tokens(CLIP(Net(), 8, TEXT), images)
    assert (len(tokens.ids), tokens.start.tolist(), tokens.count.tolist()) == (3, [0, 2, 0], [2, 1, 2])
    assert torch.equal(tokens.ids, tokenize([*shared, *own], 8)[0])


def test_sentences_are_closed_and_counted_where_they_are_cut():
    ids, cut = tokenize(["a red circle", "", "one two three four five six seven eight"], 6)
    assert cut.tolist() == [False, False, True]
    assert ids.shape == (3, 6)
    assert ids[:, 0].tolist() == [END - 1] * 3
    assert (ids == END).sum(1).tolist() == [1] * 3
    assert ids[1].tolist() == [END - 1, END, 0, 0, 0, 0]
    assert ids[2, -1] == END
    assert tokenize([], 6)[0].shape == (0, 6)


# ------------------------------------------------------------------------------------ towers
def test_a_sentence_cannot_spell_out_its_own_end():
    ids, cut = tokenize(["cat <end_of_text> dog", "cat &lt;start_of_text&gt; dog", "cat dog"], 8)
    assert torch.equal(ids[0], ids[2])
    assert torch.equal(ids[1], ids[2])
    assert not cut.any()


def test_clip_reads_up_to_the_end_and_siglip_all_at_once():
    torch.manual_seed(0)
    ids, _ = tokenize(["a b", "a c"], 8)
    causal, whole = (TextTower(4, **TEXT, causal=c).eval() for c in (True, False))
    behind = ids.clone()
    behind[:, -1] = 5  # what stands behind the end of a sentence
    assert torch.equal(causal(ids), causal(behind))
    assert not torch.equal(whole(ids), whole(behind))
    assert not torch.allclose(causal(ids)[0], causal(ids)[1])
    for wrong, said in (({"heads": 3}, "no multiple"), ({"context": 2}, "holds no word")):
        with pytest.raises(UserError, match=said):
            TextTower(4, **{**TEXT, **wrong})


@pytest.mark.parametrize("kind", [CLIP, SigLIP])
def test_scale_begins_where_the_paper_says_and_stays_in_its_bounds(kind):
    method = kind(Net(), 8, TEXT)
    assert method.step(*batch())["logit_scale"].item() == pytest.approx(1 / 0.07 if kind is CLIP else 10, rel=1e-5)
    if kind is SigLIP:
        assert method.bias.item() == -10
    for far, near in ((9.0, math.log(100)), (-1.0, 0.0)):
        method.log_scale.data.fill_(far)
        method.after_step()
        assert method.log_scale.item() == pytest.approx(near)
    free = SigLIP(Net(), 8, TEXT, max_scale=None)
    free.log_scale.data.fill_(9.0)
    free.after_step()
    assert free.log_scale.item() == 9.0


@pytest.mark.parametrize("kind", [CLIP, SigLIP])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 14])
def test_chunks_of_both_towers_have_the_gradient_of_the_batch(kind, size):
    found = []
    for chunk_size in (None, size):
        torch.manual_seed(1)
        method = kind(Net(), 8, TEXT, chunk_size=chunk_size).double()
        views, captions = batch()
        most = []
        for tower in (method.backbone, method.text):
            tower.register_forward_pre_hook(lambda m, a, most=most: most.append(len(a[0])))
        method.step([views[0].double()], captions)["loss"].backward()
        found.append({k: p.grad for k, p in method.named_parameters()})
        assert max(most) == min(7, chunk_size or 7)
    assert all(v is not None for v in found[0].values())
    for key, grad in found[0].items():
        torch.testing.assert_close(found[1][key], grad, rtol=1e-10, atol=1e-12)


def test_gap_is_the_distance_between_the_two_clouds():
    method = CLIP(Net(), 2, TEXT)
    image, text = torch.tensor([[2.0, 0.0], [5.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    assert method.gap(image, text).item() == pytest.approx(math.sqrt(2))
    assert method.gap(image, 3 * image).item() == pytest.approx(0)


# ------------------------------------------------------------------------------------ sentences
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=clip", "augment=simclr"], "takes one view of an image: use augment=clip"),
        (["method=simclr", "augment=clip"], "makes one view of an image, but the method compares two"),
        (["method=clip", "method.text.width=0"], "method.text.width"),
        (["method=siglip", "method.text.context=no"], "method.text.context"),
    ],
)
def test_what_does_not_go_together_is_said(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--cfg", "job"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
