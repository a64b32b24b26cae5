"""Captions as methods are given them: cleaned, or made of the names of classes."""

import html
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ssl_zoo.data.images import Images
from ssl_zoo.errors import UserError, one_line
from ssl_zoo.prompts import PLACE, only_numbers, spoken, templates

BLANK = re.compile("[\\s\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]+")
log = logging.getLogger("ssl_zoo")


@dataclass(frozen=True)
class Counts:
    """Images and captions that were kept; empty captions and images without any that were left out."""

    images: int
    captions: int
    empty: int
    without: int

    def line(self) -> str:
        """For the terminal, in one line."""
        left = [f"{n:,} {what}" for n, what in ((self.empty, "empty captions"), (self.without, "images without a caption")) if n]
        return f"{self.captions:,} captions of {self.images:,} images" + (f" ({' and '.join(left)} left out)" if left else "")


def captioned(images: Images, prompts: str | Sequence[str] | None, dataset: str) -> tuple[Images, Counts]:
    """The images of the data set `dataset` with clean captions: those of `prompts` (as for `templates`) where there are some, else its own.

    Raises UserError where there are none.
    """
    if prompts is not None:
        return cleaned(prompted(images, templates(prompts)))
    give = "give captions with dataset.captions=... (folder) or dataset.caption_column=... (parquet)"
    names = "set data.prompts=photo to make them of its class names, or " if images.classes else ""
    if images.captions is None:
        raise UserError(f"dataset={dataset} has no captions: {names}{give}.")
    found, counts = cleaned(images)
    if not len(found):
        raise UserError(f"None of the {len(images):,} images of dataset={dataset} has a caption with words in it: {names}{give}.")
    return found, counts


def clean(caption: str) -> str:
    """HTML entities unescaped (twice, as many were escaped); white space, control characters, invisible marks of direction and what is no
    character become one space, and none at the ends.
    """
    return BLANK.sub(" ", html.unescape(html.unescape(caption))).strip(" ")


def cleaned(images: Images) -> tuple[Images, Counts]:
    """The images that have a caption left after cleaning; none where `captions` is None. Lists that images share stay shared."""
    if images.captions is None:
        return images.take(torch.empty(0, dtype=torch.long)), Counts(0, 0, 0, len(images))
    known: dict[int, list[str]] = {}
    captions, empty = [], 0
    for own in images.captions:
        if id(own) not in known:
            known[id(own)] = [c for c in map(clean, own) if c]
        captions.append(known[id(own)])
        empty += len(own) - len(captions[-1])
    found = replace(images, captions=captions)
    kept = [i for i, own in enumerate(captions) if own]
    if len(kept) < len(images):  # or all pixels would be copied
        found = found.take(torch.tensor(kept, dtype=torch.long))
    return found, Counts(len(kept), sum(map(len, captions)), empty, len(images) - len(kept))


def prompted(images: Images, sentences: Sequence[str]) -> Images:
    """The labelled images, with every sentence about their class as a caption: {} becomes its name, with spaces for underscores. Articles
    stay as they are written: "a photo of a {}." gives "a photo of a apple.". Images of a class share their captions.
    """
    if images.labels is None or not images.classes:
        raise UserError("data.prompts needs labels with names, which this data set has not: set data.prompts=null, or choose another.")
    labelled = images.only_labelled()
    if not len(labelled):
        raise UserError("data.prompts needs labelled images, and none of these is: set data.prompts=null, or choose another data set.")
    if only_numbers(images.classes):
        example = one_line(sentences[0].replace(PLACE, images.classes[-1]))
        log.warning("the classes have numbers for names, so data.prompts makes captions such as '%s'", example)
    return prompted_too(labelled, sentences)


def prompted_too(images: Images, sentences: Sequence[str]) -> Images:
    """All of these images, the labelled ones with captions as `prompted` makes them."""
    labels = [-1] * len(images) if images.labels is None else images.labels.tolist()
    said = {i: [sentence.replace(PLACE, name) for sentence in sentences] for i, name in enumerate(spoken(images.classes or []))}
    none: list[str] = []
    return replace(images, captions=[said.get(label, none) for label in labels])
