"""Weighted nearest-neighbour classification (Wu et al. 2018, arXiv:1805.01978, section 3.4; the protocol of DINO and MoCo)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BANK = 1 << 17  # rows of the bank that are compared at a time


@torch.no_grad()
def nearest(bank: Tensor, queries: Tensor, k: int, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Cosine similarity and index of the k most similar rows of bank [N, D] for each query [Q, D], both [Q, k], most similar first.

    Exact, on the bank's device; k above N means all of the bank; at most `chunk` x 131,072 similarities are in memory.
    """
    bank, k = F.normalize(bank, dim=-1), min(k, len(bank))
    similarities, indices = [], []
    for part in queries.split(chunk):
        q = F.normalize(part.to(bank), dim=-1)
        found = [_top(q @ rows.T, k) for rows in bank.split(BANK)]
        starts = range(0, len(bank), BANK)
        sim, index = torch.cat([s for s, _ in found], 1), torch.cat([i + at for (_, i), at in zip(found, starts, strict=True)], 1)
        best, place = sim.topk(k)
        similarities.append(best)
        indices.append(index.gather(1, place))
    if not similarities:
        return bank.new_empty(0, k), torch.empty(0, k, dtype=torch.long, device=bank.device)
    return torch.cat(similarities), torch.cat(indices)


def _top(sim: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return sim.topk(min(k, sim.shape[1]))


def votes(similarity: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """Scores [Q, num_classes] where each neighbour votes exp(similarity / temperature) for its label; both [Q, k]."""
    exact = torch.float32 if similarity.device.type == "mps" else torch.float64  # exp(1 / 0.01) overflows float32
    scores = torch.zeros(len(labels), num_classes, device=labels.device, dtype=exact)
    return scores.scatter_add_(1, labels, (similarity.to(exact) / temperature).exp())


def knn_classify(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, temperature: float, num_classes: int, chunk: int = 1024
) -> Tensor:
    """Scores [Q, num_classes] of queries [Q, D]: each of the k most similar rows of bank [N, D] votes exp(cosine / temperature)
    for its label (bank_labels [N]). Exact; k above N means all of the bank.
    """
    similarity, index = nearest(bank, queries, k, chunk)
    return votes(similarity, bank_labels[index], temperature, num_classes)


def knn_sweep(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, ks: Sequence[int], temperatures: Sequence[float], num_classes: int
) -> dict[tuple[int, float], Tensor]:
    """`knn_classify` for every pair of k and temperature, from one search: {(k, temperature): scores [Q, num_classes]}."""
    similarity, index = nearest(bank, queries, max(ks))
    labels = bank_labels[index]
    return {(k, t): votes(similarity[:, :k], labels[:, :k], t, num_classes) for k in ks for t in temperatures}


def accuracy(scores: Tensor, labels: Tensor, topk: int = 1) -> float:
    """Per cent of rows whose label is among the `topk` highest scores. scores [Q, C], labels [Q]."""
    best = scores.topk(min(topk, scores.shape[1])).indices
    return 100 * int((best == labels[:, None].to(best.device)).any(1).sum()) / len(labels)
