"""Images whose features are nearly the same."""

import torch
from torch import Tensor

from ssl_zoo.errors import UserError
from ssl_zoo.nn.numerics import unit

ROUNDING = 1e-6  # of the cosine of equal features in float32
MOST = 1_000_000  # pairs; more are no duplicates but a threshold that is too low


@torch.no_grad()
def similar_pairs(features: Tensor, cosine: float, chunk: int = 2048, most: int = MOST) -> tuple[Tensor, Tensor]:
    """Pairs of rows of features [N, D] whose cosine is at least `cosine`, int64 [P, 2] with the smaller row first, and these cosines [P].

    Exact; at most `chunk` x `chunk` cosines are in memory. Raises UserError where there are more than `most` pairs.
    """
    x = unit(features.float())
    rows, values, count = [], [], 0
    for a in range(0, len(x), chunk):
        for b in range(a, len(x), chunk):
            found = x[a : a + chunk] @ x[b : b + chunk].T
            close = found >= cosine - ROUNDING
            if a == b:
                close.triu_(1)
            place = close.nonzero()
            count += len(place)
            if count > most:
                raise UserError(f"More than {most:,} pairs of images have a cosine of at least {cosine}: raise duplicates=... towards 1.")
            rows.append((place + torch.tensor([a, b], device=place.device)).cpu())
            values.append(found[place[:, 0], place[:, 1]].clamp(max=1).cpu())
    pairs = torch.cat(rows) if rows else torch.empty(0, 2, dtype=torch.long)
    return pairs, torch.cat(values) if values else torch.empty(0)


def groups(pairs: Tensor, cosines: Tensor) -> list[list[tuple[int, float]]]:
    """Pairs [P, 2] and their cosines [P] as groups of (row, its highest cosine with another of the group), the groups whose members are all
    most alike first.

    A group is an image and those that are close to it: whoever has most such images comes first, and chains of images that are each close
    to the next only do not grow together. A row whose images all went to other groups joins that of the most similar one.
    """
    near: dict[int, dict[int, float]] = {}
    for (a, b), cosine in zip(pairs.tolist(), cosines.tolist(), strict=True):
        near.setdefault(a, {})[b] = near.setdefault(b, {})[a] = cosine
    of: dict[int, int] = {}  # the first of the group of a row
    for i in sorted(near, key=lambda i: (-len(near[i]), i)):
        if i not in of:
            own = [j for j in near[i] if j not in of]
            for j in [i, *own] if own else []:
                of[j] = i
    for i in near:
        if i not in of:
            of[i] = of[max(near[i], key=lambda j: near[i][j])]
    members: dict[int, list[int]] = {}
    for i in sorted(of, key=lambda i: (i != of[i], i)):  # who began the group comes first
        members.setdefault(of[i], []).append(i)
    found = [[(i, max(c for j, c in near[i].items() if of[j] == of[i])) for i in group] for group in members.values()]
    return sorted(found, key=lambda g: (-min(c for _, c in g), -len(g), g[0][0]))
