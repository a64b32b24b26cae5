"""Results of `ssl-zoo eval` for the terminal."""

from typing import Any


def told(results: list[dict[str, Any]]) -> str:
    """One line for each number of a result; for several data sets one line each."""
    if len(results) > 1 and all("top1" in r for r in results):
        width = max(len(r["dataset"]) for r in results)
        head = f"{'':{width}}  {'top-1 %':>8}  {'95 % interval':>14}  {'top-5 %':>8}  {'train':>8}  {'test':>7}  {'classes':>7}"
        return "\n".join([head, *(f"{r['dataset']:{width}}  {_row(r)}" for r in results)])
    return "\n".join(f"{key:15}{value}" for r in results for key, value in lines(r))


def _split(r: dict[str, Any]) -> str:
    return "held-out" if r.get("held_out_of_train") else "test"


def _row(r: dict[str, Any]) -> str:
    cells = f"{_number(r.get('top1')):>8}  {_interval(r.get('top1_interval')):>14}  {_number(r.get('top5')):>8}"
    return f"{cells}  {r['train_images']:>8,}  {r['test_images']:>7,}  {len(r['classes']):>7}"


def lines(r: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of one result: the numbers of its protocol, and how they were measured."""
    found = [("protocol", f"{r['protocol']} on {r['dataset']}: {r['train_images']:,} training, {r['test_images']:,} {_split(r)} images")]
    for one in r.get("results", []):
        if "k" in one:
            found.append((f"k={one['k']}", f"{_number(one['top1'])} %   T={one['temperature']}"))
        elif "direction" in one:
            found += [(one["direction"], _direction(one))]
        else:
            spread = "" if one["std"] is None else f" ± {one['std']:.1f}   {len(one['per_draw'])} draws"
            found.append((one["labels"], f"{_number(one['top1'])} %{spread}   {one['images']:,} labels"))
    if "results" not in r and "map" not in r and "top1" in r:
        top5 = f"   top-5 {_number(r['top5'])} %" if "top5" in r else ""
        found.append(("top-1", f"{_number(r['top1'])} %   95 % interval {_interval(r['top1_interval'])}{top5}"))
    found += _zero_shot(r) if "chance_top1" in r else []
    if r.get("cut"):
        found.append(("cut", f"{r['cut']:,} sentences are longer than the network reads"))
    for name in ("final", "best"):
        if name in r:
            note = "" if name == "final" else " (chosen on the test images: optimistic)"
            found.append((f"{name} epoch", f"{_number(r[name]['top1'])} % after epoch {r[name]['epoch']}{note}"))
    named = ("map", "map_at_r", "rankme", "effective_rank", "feature_std", "alignment", "uniformity")
    for key in (*(k for k in r if k.startswith("recall_at_")), *named):
        if key in r:
            found.append((key.replace("_", " "), "–" if r[key] is None else f"{r[key]:.2f}"))
    for name, likeness in zip(r.get("cka", {}).get("names", [])[1:], r.get("cka", {}).get("matrix", [[]])[0][1:], strict=True):
        found.append(("linear CKA", f"{'–' if likeness is None else round(likeness, 3)} with {name}"))
    if "calibration" in r:
        found.append(("calibration", f"error {r['calibration']['ece']:.1f} points"))
    s = r["seconds"]
    return [*found, ("time", f"features {s['features']:.1f} s, protocol {s['protocol']:.1f} s")]


def _direction(one: dict[str, Any]) -> str:
    """Recall in one direction of retrieval, with what chance would give."""
    ks = [k.removeprefix("recall_at_") for k in one if k.startswith("recall_at_")]
    shares = [f"R@{k} {one[f'recall_at_{k}']:.1f} % ({one[f'chance_at_{k}']:.1f})" for k in ks]
    median = f"median rank {one['median_rank']:g} ({one['chance_median_rank']:g}) of {one['candidates']:,}"
    return f"{'   '.join([*shares, median])}   in brackets: by chance"


def _zero_shot(r: dict[str, Any]) -> list[tuple[str, str]]:
    found = [("by chance", f"{r['chance_top1']:.1f} %")]
    if "one_template_top1" in r:
        one, mean = (f"{r[k]:.1f} %" for k in ("one_template_top1", "mean_template_top1"))
        found.append(("one sentence", f"{one} with the first of {len(r['templates'])} alone, {mean} in the mean over each alone"))
    if alike := r.get("classes_of_the_same_name"):
        found.append(("same names", f"{alike:,} of the classes are called as another is: they cannot be told apart"))
    for key in ("seen", "held_out"):
        if r.get(f"{key}_top1") is not None:
            interval = _interval(r[f"{key}_top1_interval"])
            said = f"{r[f'{key}_top1']:.1f} %   95 % interval {interval}   {r[f'{key}_images']:,} images"
            found.append((key.replace("_", " "), said))
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _interval(value: list[float] | None) -> str:
    return "–" if value is None else f"{value[0]:.1f} to {value[1]:.1f}"
