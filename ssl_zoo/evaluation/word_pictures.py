"""The data of the figures of images and words: which caption lies near which image, what a caption finds, how far apart the two lie."""

import numpy as np
import torch
from torch import Tensor, nn

from ssl_zoo.data.images import Images, spread
from ssl_zoo.evaluation.attention import principal_components
from ssl_zoo.evaluation.features import as_bytes, centre, eval_mode
from ssl_zoo.evaluation.words_retrieval import distinct
from ssl_zoo.nn.numerics import unit
from ssl_zoo.nn.text import tokenize

MOST = 1024  # test images that captions are looked for among, and points of each kind in the plane
PAIRS, ASKED, FOUND = 10, 6, 6
LONGEST = 200  # letters of a caption that are kept


@torch.no_grad()
def word_figure_data(project: nn.Module, text: nn.Module, test: Images, features: Tensor) -> dict[str, np.ndarray]:
    """What the report draws of test images with captions: arrays under the names that reports/word_pictures.py reads; none where no image
    has a caption. project: features [N, D] of the images to embeddings; text: token ids [B, text.context] to embeddings, of any length.
    """
    rows = spread(len(test), min(MOST, len(test)))
    some = test.take(rows)
    readable, captions, pairs = distinct(some)
    first = {wording: image for image, wording in reversed(pairs.T.tolist())}  # the first image of each wording
    own = sorted({image: wording for wording, image in sorted(first.items(), reverse=True)}.items())  # and its first wording
    if not own:
        return {}
    images = unit(project(features[rows[readable].to(features.device)]).float()).nan_to_num(0, 0, 0)
    with eval_mode(text):
        ids = tokenize(captions, int(text.context))[0].to(images.device)  # type: ignore[arg-type]
        words = unit(torch.cat([text(few).float() for few in ids.split(512)])).nan_to_num(0, 0, 0)
    of_image, of_words = torch.tensor(own)[spread(len(own), min(PAIRS, len(own)))].T
    asked = of_words[:ASKED]
    found = (words[asked] @ images.T).topk(min(FOUND, len(images))).indices.cpu()
    right = {(image, wording) for image, wording in pairs.T.tolist()}
    few = min(MOST, len(images), len(words))
    plane = principal_components(torch.cat([images[spread(len(images), few)], words[spread(len(words), few)]]), 2)

    def shown(index: Tensor) -> np.ndarray:
        return as_bytes(centre(some.pixels[torch.tensor(readable)[index]], test.image_size))

    def said(index: Tensor) -> np.ndarray:
        return np.array([captions[i][:LONGEST] for i in index.tolist()], dtype=str)

    return {
        "pair_images": shown(of_image),
        "pair_captions": said(of_words),
        "pair_cosine": (images[of_image] @ words[of_words].T).cpu().numpy(),
        "asked": said(asked),
        "found": shown(found.flatten()),
        "found_right": np.array([[(i, w) in right for i in row] for row, w in zip(found.tolist(), asked.tolist(), strict=True)]),
        "plane": plane.cpu().numpy(),
    }
