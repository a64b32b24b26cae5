"""`ssl-zoo search`: which pictures, images and run are meant, and what is found: nearest neighbours and near-duplicates."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ssl_zoo.classify import check_pictures, given, literal, separated
from ssl_zoo.config import compose, plain
from ssl_zoo.embedding import Looking, looking, trained_run, write_features
from ssl_zoo.errors import UserError, one_line
from ssl_zoo.shard import dataset_words

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import Tensor

USAGE = "ssl-zoo search run=runs/<name>/<time> data=photos query=photo.jpg"
GROUPS = 12  # of near-duplicates that are drawn


def search_config(words: list[str], config_dirs: list[str]) -> DictConfig:
    """conf/search.yaml under the words of the command, with `query` as a list of files, which need no quotes."""
    query = given(words, "query")
    rest = [w for w in words if not w.startswith("query=")]
    config = compose("search", dataset_words(rest, config_dirs, 0, USAGE), config_dirs)
    if query is not None and query != "null":
        config.query = literal(separated(query))
    return config


def check_search(config: DictConfig) -> DictConfig:
    """The config of the run that is searched with. Raises UserError where something cannot be."""
    if not config.query and config.duplicates is None:
        raise UserError(f"search looks for neighbours of query=... or for duplicates=0.98 (the least cosine), or both: {USAGE}.")
    check_pictures("query", plain(config)["query"] or [])
    d = config.duplicates
    if d is not None and not (isinstance(d, (int, float)) and not isinstance(d, bool) and 0 < d <= 1):
        raise UserError(f"duplicates={d} does not work: duplicates takes a cosine above 0 and up to 1, such as 0.98.")
    if config.features is not None and not Path(str(config.features)).expanduser().is_file():
        raise UserError(f"features={config.features} is no file: write it with ssl-zoo embed, or leave it out.")
    trained = trained_run(config)
    out = search_folder(config)
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file: choose a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / "search.html").is_file():
        raise UserError(f"out={out} holds other things than an earlier search: choose a new folder.")
    return trained


def search_folder(config: DictConfig) -> Path:
    """Where what was found is written."""
    return Path(str(config.out)).expanduser() if config.out else Path(str(config.run)) / "search"


def search(config: DictConfig, trained: DictConfig) -> list[str]:
    """`ssl-zoo search`: write what was found, and say it."""
    from ssl_zoo.reports.search import write_search
    from ssl_zoo.shortage import explained

    look = looking(config, trained)
    table, features = _features(config, look)
    out = search_folder(config)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The folder out={out} cannot be made ({e.strerror}): choose another.") from e
    for name in ("search.html", "neighbours.png", "neighbours.csv", "duplicates.png", "duplicates.csv"):  # of an earlier search
        (out / name).unlink(missing_ok=True)
    told, parts = [], []
    for wanted, find in ((config.query, _neighbours), (config.duplicates, _duplicates)):
        if wanted:
            with explained(f"searching {table.num_rows:,} images", ["device=cpu"] if look.device.type != "cpu" else []):
                lines, part = find(config, look, table, features.to(look.device), out)
            told += lines
            parts.append(part)
    file = write_search(out, f"Search in {table.num_rows:,} images", parts)
    return [*told, f"{'page':14}{file}"]


def _features(config: DictConfig, look: Looking) -> "tuple[pa.Table, Tensor]":
    """The rows that have features, and these: from a file, or from the cache, into which they are written now where they are not there."""
    import hashlib
    import json

    from ssl_zoo.data.decode import cache_dir
    from ssl_zoo.evaluation.embed import identity
    from ssl_zoo.evaluation.embedded import read_embedding, same
    from ssl_zoo.evaluation.feature_cache import weights_hash

    net = look.net
    of = identity(look.splits, weights_hash(net.backbone), net.image_size)
    if config.features is not None:
        about, table, features = read_embedding(Path(str(config.features)).expanduser())
        if not same({k: about.get(k) for k in of}, of):
            raise UserError(
                f"features={config.features} is not of these images with the weights of {config.run}: write it again with ssl-zoo embed, "
                f"or leave it out."
            )
        return table, features
    key = hashlib.blake2b(json.dumps(of, sort_keys=True).encode(), digest_size=12).hexdigest()
    file = cache_dir(config.data.cache) / f"embedding-{key}.parquet"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The cache {file.parent} cannot be made ({e.strerror}): set data.cache to a folder you can write.") from e
    if file.is_file():
        try:
            return read_embedding(file)[1:]
        except UserError:  # damaged
            file.unlink()
    write_features(look, file, config.batch_size)
    return read_embedding(file)[1:]


def _pictures(look: Looking, rows: "Tensor") -> "np.ndarray":
    """The images of some rows as they are shown, uint8 [n, 3, S, S]."""
    import numpy as np

    from ssl_zoo.evaluation.embed import rows_of
    from ssl_zoo.evaluation.features import as_bytes, centre

    return np.stack([as_bytes(centre(images.pixels[i : i + 1], images.image_size))[0] for images, i in rows_of(look.splits, rows)])


def _row(table: "pa.Table", i: int) -> dict[str, Any]:
    """What is known of a row, by the names of the columns."""
    return {key: table[key][i].as_py() for key in table.column_names if key != "label" or "class" not in table.column_names}


def _neighbours(
    config: DictConfig, look: Looking, table: "pa.Table", features: "Tensor", out: Path
) -> "tuple[list[str], tuple[str, Path | None, list[dict[str, Any]], str]]":
    import torch

    from ssl_zoo.data.pixels import canvas_for
    from ssl_zoo.evaluation.features import as_bytes, centre, normalised
    from ssl_zoo.evaluation.knn import nearest
    from ssl_zoo.loading import pixels_of
    from ssl_zoo.reports.search import draw_neighbours, write_csv

    files, net, size = plain(config)["query"], look.net, next(iter(look.splits.values())).image_size
    pixels = torch.stack([pixels_of(f, canvas_for(size), f"query={one_line(f)[:160]}") for f in files])
    with torch.no_grad():
        prepared = (normalised(p.to(look.device), size, net.mean, net.std, net.image_size) for p in pixels.split(config.batch_size))
        asked = torch.cat([net(p) for p in prepared])
    cosines, index = (t.cpu() for t in nearest(features, asked, config.top))
    rows = torch.tensor(table["row"].to_numpy())
    shown = [_pictures(look, rows[i]) for i in index]
    names = [Path(f).name for f in files]
    figure = draw_neighbours(out / "neighbours.png", as_bytes(centre(pixels, size)), names, shown, cosines.numpy())
    found = [
        {"query": one_line(f), "rank": rank + 1, "cosine": float(cosines[q, rank]), **_row(table, int(i))}
        for q, f in enumerate(files)
        for rank, i in enumerate(index[q])
    ]
    file = write_csv(out / "neighbours.csv", found)
    told = [f"{one_line(Path(f).name)[:40]:14}{_best(found, one_line(f))}" for f in files]
    said = f"Pictures of {len(files)} queries and the images whose features have the highest cosine with theirs."
    return [*told, f"{'neighbours':14}{figure}, {file.name}"], ("Nearest neighbours", figure, found, said)


def _best(found: list[dict[str, Any]], query: str) -> str:
    near = [r for r in found if r["query"] == query][:3]
    return ", ".join(f"{one_line(r['name'])[:60]} ({r['cosine']:.3f})" for r in near)


def _duplicates(
    config: DictConfig, look: Looking, table: "pa.Table", features: "Tensor", out: Path
) -> "tuple[list[str], tuple[str, Path | None, list[dict[str, Any]], str]]":
    import torch

    from ssl_zoo.evaluation.duplicates import groups, similar_pairs
    from ssl_zoo.reports.search import PICTURES, draw_duplicates, write_csv

    found = groups(*similar_pairs(features, float(config.duplicates)))
    count = sum(map(len, found))
    said = f"{count:,} of {len(table):,} images have one whose features' cosine with theirs is {config.duplicates} or more"
    if not found:
        return [f"{'duplicates':14}none: no two images have a cosine of {config.duplicates} or more"], (
            "Near-duplicates", None, [], f"No two of {len(table):,} images have a cosine of {config.duplicates} or more.")  # fmt: skip
    split = table["split"].to_pylist()
    across = sum(len({split[i] for i, _ in group}) > 1 for group in found)
    said += f", in {len(found):,} groups" + (f", of which {across:,} span train and test" if across else "")
    if count > len(table) // 2:
        said += ". That is most of them: raise duplicates towards 1, as this backbone tells images apart by less"
    rows = [{"group": g + 1, "cosine": cosine, **_row(table, i)} for g, group in enumerate(found) for i, cosine in group]
    file = write_csv(out / "duplicates.csv", rows)
    place = torch.tensor(table["row"].to_numpy())
    first = [group[:PICTURES] for group in found[:GROUPS]]
    shown = [_pictures(look, place[torch.tensor([i for i, _ in group])]) for group in first]
    names = [f"group {g + 1}: {len(group)}" for g, group in enumerate(found[:GROUPS])]
    figure = draw_duplicates(out / "duplicates.png", shown, [[c for _, c in group] for group in first], names)
    return [f"{'duplicates':14}{said}", f"{'':14}{figure}, {file.name}"], ("Near-duplicates", figure, rows, f"{said}.")
