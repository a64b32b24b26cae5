"""Retrieval between images and captions, as Flickr30k and COCO count it (Karpathy and Fei-Fei 2015, arXiv:1412.2306, section 4.1).

Image to text: how early the first of an image's captions comes among all captions. Text to image: every caption is a query, and its image
has to come early. What the papers leave open is settled so that a network cannot gain by it:

- Captions of one wording are one caption: the network cannot tell them apart. It is one candidate, right for every image that has it; as a
  query it counts once for each of these, and any of them is right. Without such captions the count is that of the papers.
- Candidates nearer than `TIE` to the first right one count as before it: a network that gives all the same answer finds nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.data.captions import clean
from ssl_zoo.data.images import Images
from ssl_zoo.data.ondemand import OnDemand
from ssl_zoo.evaluation.scores import wilson
from ssl_zoo.nn.numerics import unit

TIE = {torch.float32: 1e-6, torch.float64: 1e-12}  # above the rounding of a cosine
BLOCK = 1 << 15  # candidates that are compared at a time


def distinct(images: Images) -> tuple[list[int], list[str], Tensor]:
    """The images that can be read, the wordings of all their captions, cleaned as in training, each once, and (which of these images,
    wording) int64 [2, P] of every caption. Others do not count: they show another image.
    """
    readable = images.pixels.readable().nonzero()[:, 0].tolist() if isinstance(images.pixels, OnDemand) else [*range(len(images))]
    number: dict[str, int] = {}
    said = [[c for c in map(clean, images.captions[row]) if c] for row in readable] if images.captions else []
    pairs = [(i, number.setdefault(c, len(number))) for i, own in enumerate(said) for c in own]
    return readable, list(number), torch.tensor(pairs, dtype=torch.long).view(-1, 2).T


@torch.no_grad()
def first_ranks(queries: Tensor, candidates: Tensor, right: Tensor, chunk: int = 1024) -> Tensor:
    """The rank int64 [Q], from 1, of the first right candidate for each of the unit queries [Q, D] among unit candidates [G, D].

    right: pairs (query, candidate) int64 [2, P]; every query needs one. At most chunk x 32,768 similarities are in memory.
    """
    right = right[:, right[0].argsort(stable=True)]
    of_query, candidate = right[0].contiguous(), right[1]
    best = queries.new_full((len(queries),), -torch.inf)
    for q, c in zip(of_query.split(1 << 12), candidate.split(1 << 12), strict=True):
        best.scatter_reduce_(0, q, (queries[q] * candidates[c]).sum(1), "amax")
    ahead = torch.ones(len(queries), dtype=torch.long, device=queries.device)
    for start in range(0, len(queries), chunk):
        rows = slice(start, min(start + chunk, len(queries)))
        ends = torch.searchsorted(of_query, torch.tensor([start, rows.stop], device=queries.device)).tolist()
        q, c = of_query[slice(*ends)] - start, candidate[slice(*ends)]
        least = best[rows, None] - TIE[queries.dtype]
        for at in range(0, len(candidates), BLOCK):
            similar = queries[rows] @ candidates[at : at + BLOCK].T
            here = (c >= at) & (c < at + BLOCK)
            similar[q[here], c[here] - at] = -torch.inf
            ahead[rows] += (similar >= least).sum(1)
    return ahead


def chance_at(k: int, right: Tensor, candidates: int) -> Tensor:
    """The probability [Q] that one of right [Q] among so many candidates is within the first k of a random order (hypergeometric)."""
    wrong = candidates - right.double()
    k = min(k, candidates)

    def ways(n: Tensor) -> Tensor:  # log of n choose k, but for k!
        return torch.lgamma(n + 1) - torch.lgamma((n - k).clamp_min(0) + 1)

    none = (ways(wrong) - ways(torch.full_like(wrong, candidates))).exp()
    return 1 - torch.where(wrong < k, 0.0, none)


def chance_median(right: Tensor, candidates: int) -> int:
    """The smallest k within which at least half of the queries have a right candidate, in the mean over random orders."""
    counts, times = right.unique(return_counts=True)
    low, high = 1, candidates
    while low < high:
        k = (low + high) // 2
        share = float((chance_at(k, counts, candidates) * times).sum() / times.sum())
        low, high = (low, k) if share >= 0.5 - 1e-9 else (k + 1, high)
    return low


def words_retrieval(images: Tensor, sentences: Tensor, pairs: Tensor, ks: Sequence[int], chunk: int = 1024) -> list[dict[str, Any]]:
    """Recall@k in per cent and the median rank in both directions, by cosine similarity, and what a random order would give.

    images [N, D]; sentences [M, D], each wording once; pairs int64 [2, P], (image, sentence) for every caption of every image. Images
    without a caption are candidates alone. The interval of recall@1 counts images, since the captions of one image stand and fall together.
    """
    images, sentences = unit(images), unit(sentences).to(images)
    pairs = pairs.to(images.device)
    own, inverse = pairs[0].unique(return_inverse=True)
    distinct = pairs.unique(dim=1)
    to_text = first_ranks(images[own], sentences, torch.stack([inverse, pairs[1]]), chunk)
    to_image = first_ranks(sentences, images, pairs.flip(0), chunk)[pairs[1]]
    of_image = torch.bincount(distinct[0], minlength=len(images))[own]
    of_sentence = torch.bincount(distinct[1], minlength=len(sentences))[pairs[1]]
    return [
        {"direction": "image to text", **_told(to_text, of_image, len(sentences), ks, len(own))},
        {"direction": "text to image", **_told(to_image, of_sentence, len(images), ks, len(own))},
    ]


def _told(ranks: Tensor, right: Tensor, candidates: int, ks: Sequence[int], count: int) -> dict[str, Any]:
    ranks, right = ranks.cpu(), right.cpu()
    found: dict[str, Any] = {"queries": len(ranks), "candidates": candidates}
    if 1 in ks:
        top1 = 100 * int((ranks <= 1).sum()) / len(ranks)
        found |= {"top1": top1, "top1_interval": wilson(top1, count)}
    found |= {f"recall_at_{k}": 100 * int((ranks <= k).sum()) / len(ranks) for k in ks}
    found["median_rank"] = float(np.median(ranks.numpy()))
    found |= {f"chance_at_{k}": 100 * float(chance_at(k, right, candidates).mean()) for k in ks}
    return {**found, "chance_median_rank": chance_median(right, candidates)}
