"""The contestant lightly of judge.py: its kNN function on the features of a file, in batches as its evaluation calls it."""

import numpy as np
import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict
from peer_line import Line

BATCH = 256


def main() -> None:
    line = Line()
    s = line.settings
    found = np.load(s.features)
    bank, labels, queries, wanted = (torch.from_numpy(found[k]) for k in ("bank", "labels", "queries", "wanted"))

    def run() -> torch.Tensor:
        feature_bank = F.normalize(bank, dim=1).t().contiguous()
        parts = F.normalize(queries, dim=1).split(BATCH)
        ranked = [knn_predict(p, feature_bank, labels, num_classes=s.classes, knn_k=s.k, knn_t=s.temperature) for p in parts]
        return torch.cat(ranked)[:, 0]

    line.ready(["lightly"], top1=100 * float((run() == wanted).double().mean()))
    for _, times in line.rounds():
        start = line.now()
        for _ in range(times):
            run()
        line.answer((line.now() - start) / times)


if __name__ == "__main__":
    main()
