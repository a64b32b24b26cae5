"""The data of the figures: images and their views, a map of the features, nearest neighbours, what a backbone looks at."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_zoo.data.images import Images, spread
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.attention import attention_maps, patch_colours, patch_features, principal_components
from ssl_zoo.evaluation.features import as_bytes, centre
from ssl_zoo.evaluation.knn import nearest
from ssl_zoo.files import whole

log = logging.getLogger("ssl_zoo")
MAPPED = 2048  # images in the map of features
FEW = 10  # below it neighbours are no neighbourhood, and a map shows principal components whatever the method


def save_figure_data(folder: Path, data: dict[str, np.ndarray]) -> None:
    """Write data.npz of a folder of figures, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "data.npz", sync=False) as f:
        np.savez_compressed(f, **data)  # type: ignore[arg-type]


def figure_data(
    backbone: nn.Module,
    test: Images,
    queries: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    views: Callable[[Tensor], list[Tensor]] | None = None,
    known: Images | None = None,
    bank: Tensor | None = None,
    method: str = "pca",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """What the report draws of test images, whose features are queries [N, D]: arrays under the names that reports/pictures.py reads.

    views: gives of uint8 images on the device of queries their normalised views, each [B, 3, h, w]. known, bank: labelled images and their
    features, among which neighbours are looked for (None: among the test images). method, seed: of `feature_map`.
    """
    rows = spread(len(test), min(18, len(test)))  # images with views, then images with neighbours
    some = test.pixels[rows[:8]].to(queries.device)
    m, s = (torch.tensor(v, device=queries.device).view(1, 3, 1, 1) for v in (mean, std))
    shown = [as_bytes(v * s + m) for v in views(some)] if views else []
    queries = queries.nan_to_num(0, 0, 0)
    sample = spread(len(queries), min(MAPPED, len(queries)))
    try:
        points, method = feature_map(queries[sample], method, seed)
    except UserError as e:  # said at the start of a run, but one may end on another machine
        log.warning("%s The map shows principal components.", e)
        points, method = feature_map(queries[sample])
    data: dict[str, np.ndarray] = {
        "originals": as_bytes(centre(some, test.image_size)),
        **{f"view_{i}": v for i, v in enumerate(shown)},
        "map": points,
        "map_method": np.array(method),
        "classes": np.array(test.classes or [], dtype=str),
        **_neighbours(test, queries, rows[-10:], known, bank),
        **_looks(backbone, (centre(some, test.image_size) - m) / s),
    }
    if test.labels is not None:
        data["labels"] = test.labels[sample].cpu().numpy()
    return data


def feature_map(features: Tensor, method: str = "pca", seed: int = 0) -> tuple[np.ndarray, str]:
    """Features [N, D] as points float32 [N, 2] (fewer columns where there are fewer components), and the method that gave them.

    method: "pca", the first two principal components; "tsne" (van der Maaten & Hinton 2008), by scikit-learn; "umap" (McInnes et al. 2018),
    by umap-learn; the same points for the same seed. UserError where the package is missing.
    """
    x = features.float()
    if method == "pca" or len(x) < FEW:
        return principal_components(x, 2).cpu().numpy(), "pca"
    embedding: Any
    try:
        if method == "tsne":
            from sklearn.manifold import TSNE

            embedding = TSNE(init="pca", perplexity=min(30, (len(x) - 1) / 3), random_state=seed)
        elif method == "umap":
            from umap import UMAP

            embedding = UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed, n_jobs=1)
        else:
            raise UserError(f"A map of features is made by pca, tsne or umap, not by '{method}'.")
    except ImportError as e:
        raise UserError(f"A map by {method} needs a package that is not installed: pip install 'ssl-zoo[plots]', or use pca.") from e
    return np.asarray(embedding.fit_transform(x.cpu().numpy()), dtype=np.float32), method


def _neighbours(test: Images, queries: Tensor, asked: Tensor, known: Images | None, bank: Tensor | None) -> dict[str, np.ndarray]:
    """Eight nearest neighbours of the test images `asked`."""
    pool, images = (queries, test) if bank is None or known is None else (bank.nan_to_num(0, 0, 0), known)
    index = nearest(pool, queries[asked], 9)[1].cpu()
    index = index[:, 1:] if images is test else index[:, :8]  # among the test images the first is the query itself
    data = {
        "index": index.numpy(),
        "queries": as_bytes(centre(test.pixels[asked], test.image_size)),
        "neighbours": as_bytes(centre(images.pixels[index.flatten()], test.image_size)),
    }
    if test.labels is not None and images.labels is not None:
        data |= {"query_labels": test.labels[asked].cpu().numpy(), "neighbour_labels": images.labels[index].cpu().numpy()}
    return data


def _looks(backbone: nn.Module, x: Tensor) -> dict[str, np.ndarray]:
    """Attention and patches of normalised images [B, 3, S, S], where the backbone has them."""
    x = x.to(next((p.dtype for p in backbone.parameters()), torch.float32))
    data = {}
    try:
        attention, patches = attention_maps(backbone, x), patch_features(backbone, x)
    except Exception as e:  # timm has a thousand networks, users have more, and no picture is worth a run
        log.warning("No pictures of what the backbone looks at (%s).", " ".join(str(e).split())[:160])
        return {}
    if attention is not None:
        data["attention"] = attention.cpu().numpy()
    if patches is not None:
        data["patches"] = patch_colours(patches).cpu().numpy()
    return data
