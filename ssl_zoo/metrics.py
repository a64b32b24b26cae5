"""The metrics by which the best epoch of a run can be chosen, and which way is better."""

BETTER = {
    "eval/knn_top1": "max",
    "eval/online_linear_top1": "max",
    "health/effective_rank": "max",
    "health/feature_std": "max",
    "health/alignment": "min",  # mean distance of two views of an image
    "health/uniformity": "min",  # lower is more evenly spread
    "train/loss": "min",
}
