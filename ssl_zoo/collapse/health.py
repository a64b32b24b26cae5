"""Numbers that show whether features have collapsed, and a verdict in words."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_std(h: Tensor) -> float:
    """Mean over dimensions of the standard deviation of unit features, times sqrt(D): about 1 when spread out, 0 when constant.

    h: [N, D]. (SimSiam, section 4.1.)
    """
    return float(F.normalize(h.float(), dim=-1).std(0, correction=0).mean() * h.shape[1] ** 0.5)


def effective_rank(h: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred features [N, D]; from 1 to min(N, D). (Roy & Vetterli 2007.)"""
    if not torch.isfinite(h).all():
        return math.nan
    s = torch.linalg.svdvals((h - h.mean(0)).float())
    p = s / s.sum().clamp_min(1e-12)
    return float(torch.exp(-(p * p.clamp_min(1e-12).log()).sum()))


def alignment(h1: Tensor, h2: Tensor) -> float:
    """Mean squared distance between unit features of two views of the same images, [N, D] each; 0 to 4. (Wang & Isola 2020, eq. 1.)"""
    return float((F.normalize(h1.float(), dim=-1) - F.normalize(h2.float(), dim=-1)).square().sum(-1).mean())


def uniformity(h: Tensor) -> float:
    """log mean exp(-2 d^2) over pairs of unit features [N, D]; 0 when constant, about -4 on a sphere. (Wang & Isola 2020, eq. 2.)"""
    if len(h) < 2:
        return 0.0
    d2 = torch.pdist(F.normalize(h.float(), dim=-1)).square()
    return float((-2 * d2).exp().mean().clamp_min(1e-30).log())


@torch.no_grad()
def assignment_entropies(probs: Tensor) -> dict[str, Tensor]:
    """Two entropies of a teacher's probabilities [..., K] as shares of ln K. "teacher_entropy", of each image: 1 when the teacher is
    uniform and so tells nothing. "marginal_entropy", of their mean over images: 0 when every image gets the same prototype.
    "prototypes_used" is exp of the latter entropy, from 1 to K.
    """

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.clamp_min(1e-12).log()).sum(-1).mean() / math.log(p.shape[-1])

    marginal = entropy(probs.flatten(0, -2).mean(0))
    return {"teacher_entropy": entropy(probs), "marginal_entropy": marginal, "prototypes_used": probs.shape[-1] ** marginal}


def measure(h: Tensor, h1: Tensor, h2: Tensor) -> dict[str, float]:
    """All of the above. h: [N, D] features of un-augmented images; h1, h2: [M, D] of two views of some of them."""
    return {
        "feature_std": feature_std(h),
        "effective_rank": effective_rank(h),
        "alignment": alignment(h1, h2),
        "uniformity": uniformity(h),
    }


CAUSES = {
    "projections": "a missing predictor, teacher, stop-gradient or variance term",
    "constant": "a missing stop-gradient, predictor, teacher or variance term, or a learning rate that is too high",
    "dimensional": "no term that decorrelates or spreads, or augmentations that leave a shortcut",
    "uniform": "no sharpening: the teacher's temperature is too high against the student's",
    "one prototype": "no centering: the center follows too slowly (method.center_momentum near 1) or not at all",
    "narrow projections": "a missing stop-gradient, or no term that makes dimensions differ",
    "shrunk": "a variance term that is missing or too weak (method.std_coeff)",
}


def diagnose(numbers: dict[str, float], dim: int, samples: int) -> str | None:
    """What is wrong with features of width `dim`, in one sentence that names the likely cause; None when nothing is.

    numbers: "feature_std" and "effective_rank" of `samples` features. Where they are known: "z_std" and "z_rank", the same two of
    projections; "embedding_std", the standard deviation of projections whose length the loss sees; "teacher_entropy",
    "marginal_entropy" and "prototypes_used" of a teacher that assigns prototypes.
    """
    std, rank = numbers["feature_std"], numbers["effective_rank"]
    if math.isnan(std) or math.isnan(rank):
        return "Broken: the features are not numbers (NaN); lower the learning rate."
    if samples < 8:
        return f"Unclear: {samples} images are too few to tell whether the features have collapsed."
    if numbers.get("prototypes_used", math.inf) < 3 and numbers["marginal_entropy"] < 0.5:  # a few are all where K is small
        used = f"{numbers['prototypes_used']:.1f}"
        return f"Collapsed: the teacher gives all images the same few prototypes (about {used}). Likely cause: {CAUSES['one prototype']}."
    if numbers.get("teacher_entropy", 0.0) > 0.99:
        return f"Collapsed: the teacher is uniform and teaches nothing, the loss stays at ln K. Likely cause: {CAUSES['uniform']}."
    if std < 0.05:
        what = f"every image gets nearly the same features (spread {std:.3f}, healthy is near 1)"
        return f"Collapsed: {what}. Likely cause: {CAUSES['constant']}."
    if numbers.get("z_std", 1.0) < 0.05:
        what = f"every image gets nearly the same projection (spread {numbers['z_std']:.3f}, healthy is near 1)"
        return f"Collapsed: {what}. Likely cause: {CAUSES['projections']}."
    if numbers.get("embedding_std", 1.0) < 0.05:
        what = f"projections shrink to a point (standard deviation {numbers['embedding_std']:.3f}, the loss aims at 1)"
        return f"Collapsed: {what}. Likely cause: {CAUSES['shrunk']}."
    if numbers.get("z_rank", math.inf) < 1.75:  # 1 is a line; the narrowest of the healthy runs in docs/methods.md has 2.1
        what = f"the projections vary along about {numbers['z_rank']:.1f} dimensions only"
        return f"Dimensional collapse: {what}. Likely cause: {CAUSES['narrow projections']}."
    if rank < max(2.0, 0.01 * min(dim, samples)):
        return f"Dimensional collapse: the features use about {rank:.1f} of {dim} dimensions. Likely cause: {CAUSES['dimensional']}."
    return None


def verdict(numbers: dict[str, float], dim: int, samples: int) -> str:
    """One sentence on the state of the features: what is wrong, or that they are healthy."""
    std, rank = numbers["feature_std"], numbers["effective_rank"]
    fine = f"Healthy: features are spread out ({std:.2f}, collapse is 0) and use about {rank:.0f} of {dim} dimensions."
    return diagnose(numbers, dim, samples) or fine
