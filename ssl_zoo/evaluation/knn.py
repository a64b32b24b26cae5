"""Weighted nearest-neighbour classification (Wu et al. 2018, arXiv:1805.01978, section 3.4; the protocol of DINO and MoCo)."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def knn_classify(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, temperature: float, num_classes: int, chunk: int = 1024
) -> Tensor:
    """Scores [Q, num_classes] of queries [Q, D]: each of the k most similar rows of bank [N, D] votes exp(cosine / temperature)
    for its label (bank_labels [N]). Exact; k above N means all of the bank; at most `chunk` x N similarities are in memory.
    """
    bank = F.normalize(bank, dim=-1)
    k = min(k, len(bank))
    exact = torch.float32 if bank.device.type == "mps" else torch.float64  # exp(1 / 0.01) overflows float32
    scores = torch.zeros(len(queries), num_classes, device=bank.device, dtype=exact)
    for start in range(0, len(queries), chunk):
        q = F.normalize(queries[start : start + chunk].to(bank.device), dim=-1)
        sim, index = (q @ bank.T).topk(k)
        scores[start : start + chunk].scatter_add_(1, bank_labels[index], (sim.to(exact) / temperature).exp())
    return scores


def accuracy(scores: Tensor, labels: Tensor, topk: int = 1) -> float:
    """Per cent of rows whose label is among the `topk` highest scores. scores [Q, C], labels [Q]."""
    best = scores.topk(min(topk, scores.shape[1])).indices
    return float((best == labels[:, None].to(best.device)).any(1).double().mean() * 100)


def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarity and index of the k most similar rows of bank [N, D] for each query [Q, D]; both [Q, k]."""
    return (F.normalize(queries, dim=-1) @ F.normalize(bank, dim=-1).T).topk(min(k, len(bank)))
