"""Seconds of judging features: kNN and a sweep of logistic regression, beside scikit-learn and lightly.

    python benchmarks/judge.py OUT --queries 10000 --bank 50000 --width 512

Features are drawn: ten classes that overlap, so that accuracies tell whether all do the same. kNN takes k = 20 and T = 0.07; lightly's
function is called on batches of 256 queries, as its evaluation does, in an environment of its own (made in OUT/venv-lightly, or given:
--venv-lightly; "none" leaves it out). The sweep fits six strengths of L2, chooses one on a tenth held out and fits again on all, with at
most 100 iterations each: ours from strong to weak, each from the one before, scikit-learn's each from zero.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import LEAST, arguments, facts, interleaved, interval, medians, ratio, timed, write
from peers import Contestant, environment
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ssl_zoo.evaluation.knn import accuracy, knn_classify, knn_sweep
from ssl_zoo.evaluation.linear import choose_and_fit, moments_of

K, T, CLASSES = 20, 0.07, 10
L2 = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1]
OURS, THEIRS, LIGHTLY = "ssl_zoo", "scikit-learn", "lightly"


def drawn(rows: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of overlapping classes, in a space whose dimensions differ in scale."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(CLASSES, (rows,), generator=g)
    scale = torch.logspace(0, -2, width)
    return (0.08 * centres[labels] + torch.randn(rows, width, generator=g)) * scale, labels


class ScikitLearn:
    """The same two protocols by scikit-learn."""

    def knn(self, bank: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
        net = KNeighborsClassifier(K, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / T), n_jobs=-1)
        return net.fit(bank, labels).predict(queries)

    def sweep(self, x: np.ndarray, y: np.ndarray) -> LogisticRegression:
        order = np.random.RandomState(0).permutation(len(x))
        held, kept = order[: len(x) // 10], order[len(x) // 10 :]
        found = [(self._fit(x[kept], y[kept], s).score(x[held], y[held]), s) for s in L2]
        return self._fit(x, y, max(found)[1])

    def _fit(self, x: np.ndarray, y: np.ndarray, strength: float) -> LogisticRegression:
        return LogisticRegression(C=1 / (strength * len(x)), max_iter=100, tol=1e-7).fit(x, y)


def contestant(options: Any, settings: dict[str, Any]) -> Contestant | None:
    if options.venv_lightly == "none":
        return None
    return Contestant(LIGHTLY, environment(options.venv_lightly, options.out, "lightly"), "peer_knn.py", settings)


def main() -> None:
    options = arguments(__doc__, queries=10_000, bank=50_000, width=512, rounds=12, venv_lightly="")
    (bank, labels), (queries, wanted) = (drawn(n, options.width, s) for s, n in enumerate((options.bank, options.queries)))
    x, y, q = bank.numpy(), labels.numpy(), queries.numpy()
    mean, std = moments_of(bank)
    standard, asked = ((bank - mean) / std).numpy(), ((queries - mean) / std).numpy()
    file = options.out.resolve() / "features.npz"
    np.savez(file, bank=x, labels=y, queries=q, wanted=wanted.numpy())
    peer = contestant(options, {"features": str(file), "out": str(options.out.resolve()), "threads": options.threads, "device": "cpu",
                                "k": K, "temperature": T, "classes": CLASSES})  # fmt: skip
    sklearn = ScikitLearn()
    kept: dict[str, Any] = {}

    def keep(name: str, run: Callable[[], Any]) -> Callable[[], float]:
        def again() -> None:
            kept[name] = run()

        return timed(again, "cpu")

    knn = {
        OURS: keep("knn", lambda: knn_classify(bank, labels, queries, K, T, CLASSES)),
        "ssl_zoo, k of 10, 20, 100, 200": keep("many", lambda: knn_sweep(bank, labels, queries, [10, 20, 100, 200], [T], CLASSES)),
        THEIRS: keep("theirs", lambda: sklearn.knn(x, y, q)),
        **({LIGHTLY: partial(peer.take, "go", 1)} if peer else {}),
    }
    seconds = interleaved(knn, options.rounds)
    started = time.perf_counter()
    sweep = interleaved({OURS: keep("probe", lambda: choose_and_fit(bank, labels, CLASSES, L2, 100)),
                         THEIRS: keep("logistic", lambda: sklearn.sweep(standard, y))}, max(LEAST, options.rounds // 2))  # fmt: skip
    print(f"sweeps: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    right = {
        OURS: accuracy(kept["knn"], wanted),
        "ssl_zoo, k of 10, 20, 100, 200": accuracy(kept["many"][20, T], wanted),
        THEIRS: 100 * float((kept["theirs"] == wanted.numpy()).mean()),
        **({LIGHTLY: peer.facts["top1"]} if peer else {}),
    }
    probe = {OURS: accuracy(kept["probe"][0](queries), wanted), THEIRS: 100 * kept["logistic"].score(asked, wanted.numpy())}
    report(options, seconds, sweep, right, probe)
    if peer:
        peer.end()


def report(options: Any, knn: dict, sweep: dict, right: dict[str, float], probe: dict[str, float]) -> None:
    rows, bars, worst = [], {}, 0.0
    for what, seconds, top1 in (("kNN", knn, right), ("L2 sweep", sweep, probe)):
        for name, value in medians(seconds).items():
            found = ratio(seconds, name, OURS)
            worst = max(worst, found["spread"])
            rows.append(
                {
                    "": f"{what}: {name}",
                    "seconds": f"{value:.2f}",
                    "times ssl_zoo": f"{found['ratio']:.2f}",
                    "95 % interval": interval(found),
                    "top-1 %": f"{top1[name]:.2f}",
                }
            )
            bars[f"{what}: {name}"] = value
    shape = {"queries": options.queries, "bank": options.bank, "width": options.width}
    write(options.out, "judge-cpu", {**facts("cpu"), **shape, "seconds": {"knn": knn, "sweep": sweep}}, rows, bars, "seconds", worst)


if __name__ == "__main__":
    main()
