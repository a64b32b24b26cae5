"""Retrieval by class: how early images of a query's own class come among all others."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.errors import UserError


@torch.no_grad()
def retrieval(
    queries: Tensor, query_labels: Tensor, gallery: Tensor | None, gallery_labels: Tensor | None, ks: Sequence[int], chunk: int = 256
) -> dict[str, float]:
    """Recall@k, mAP and mAP@R in per cent by cosine similarity, over the queries [Q, D] whose class the gallery [N, D] holds.

    gallery None: every query is searched among the other queries. Recall@k: the share of queries with at least one image of their class
    among the first k (Jegou et al. 2011). mAP: mean over queries of the mean precision at each image of their class. mAP@R: the same over
    the first R places alone, R being the number of images of the class (Musgrave et al. 2020, arXiv:2003.08505, section 3.2).
    """
    itself = gallery is None
    q = F.normalize(queries, dim=-1)
    g = q if itself else F.normalize(gallery.to(q), dim=-1)  # type: ignore[union-attr]
    labels = query_labels if itself else gallery_labels
    recalls = dict.fromkeys(ks, 0.0)
    map_all, map_r, count = 0.0, 0.0, 0
    for start in range(0, len(q), chunk):
        rows = slice(start, start + chunk)
        sim = q[rows] @ g.T
        if itself:
            sim[torch.arange(len(sim)), torch.arange(start, start + len(sim))] = -torch.inf
        order = sim.argsort(dim=1, descending=True, stable=True)
        hits = (labels[order] == query_labels[rows, None]).cpu()  # type: ignore[index]
        if itself:
            hits = hits[:, :-1]  # the query itself comes last
        relevant = hits.sum(1)
        hits, relevant = hits[relevant > 0], relevant[relevant > 0]
        place = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
        precision = hits.cumsum(1) / place * hits
        map_all += float((precision.sum(1) / relevant).sum())
        map_r += float(((precision * (place <= relevant[:, None])).sum(1) / relevant).sum())
        for k in ks:
            recalls[k] += float(hits[:, :k].any(1).sum())
        count += len(hits)
    if not count:
        raise UserError("No test image has another image of its class to be found: use protocol.gallery=train, or a larger test split.")
    share = 100 / count
    return {
        **{f"recall_at_{k}": share * r for k, r in recalls.items()},
        "map": share * map_all,
        "map_at_r": share * map_r,
        "queries": count,
    }
