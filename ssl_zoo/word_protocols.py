"""The protocols of `ssl-zoo eval` that judge images by words."""

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ssl_zoo.build import Data
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.labelled import labelled_pair
from ssl_zoo.evaluation.words_retrieval import distinct, words_retrieval
from ssl_zoo.evaluation.zero_shot import seen_and_held_out, zero_shot
from ssl_zoo.prompts import PLACE, only_numbers, spoken, templates
from ssl_zoo.word_lists import word_list
from ssl_zoo.words import Towers

if TYPE_CHECKING:
    from ssl_zoo.protocols import Evaluation


def by_words(options: dict[str, Any], trained: DictConfig | None, data: Data, layers: bool = False) -> bool:
    """Whether a protocol judges by words. Retrieval does where `between` says so, or leaves it to what run and data set have; not where
    the command asks for features of its own (`layers`), which do not meet words.
    """
    if options["name"] != "retrieval":
        return options["name"] == "zero_shot"
    known = trained is not None and "text" in trained.method and any(data.test.captions or [])
    between = options.get("between", "images")
    return between == "words" or (between == "auto" and options["gallery"] == "test" and known and not layers)


def lacking(name: str, between: str | None, data: Data) -> str | None:
    """What the data lack for a protocol, as a sentence; None where they have it."""
    if name == "zero_shot":
        known = data.test.labels is not None and len(data.test.labelled)
        return None if known else "eval protocol=zero_shot needs labels, but the test images have none: choose another data set."
    if between == "words":
        good = any(data.test.captions or [])
        return (
            None if good else "retrieval between images and words needs captions, which the test images lack: use protocol.between=images."
        )
    reason = None if name == "health" else labelled_pair(data.train, data.test)
    return f"eval protocol={name} needs labels, but {reason}: use protocol=health." if reason else None


def class_names(given: str | list[str] | None, data: Data) -> list[str]:
    """What the classes are called in sentences: as `given` (a list, a file), else the data set's names with spaces for underscores."""
    names, count = data.train.classes, max(data.train.num_classes, data.test.num_classes)
    if given is not None:
        found = word_list(given, "protocol.classes")
        if len(found) != count:
            raise UserError(f"protocol.classes holds {len(found):,} names, but the data set has {count:,} classes: give one for each.")
        return found
    if not names or only_numbers(names):
        raise UserError(
            f"The data set has numbers for its {count:,} classes, and no names: give them with protocol.classes=[...] or a file."
        )
    return spoken(names)


def judge_zero_shot(e: "Evaluation") -> dict[str, Any]:
    towers = _towers(e)
    names, sentences = class_names(e.options["classes"], e.data), templates(e.options["templates"] or "photo", "protocol.templates")
    images, labels = e.known(e.data.test)
    prompts, cut = towers.sentences([s.replace(PLACE, name) for name in names for s in sentences], e.batch_size)
    probable = towers.scale if towers.bias is None else None
    found = zero_shot(images, prompts.unflatten(0, (len(names), len(sentences))), labels, e.classes, probable)
    found |= seen_and_held_out(found["confusion"], e.classes, e.held_out)
    alike = len(names) - len(towers.read(names)[0].unique(dim=0))
    return {**found, **({"classes_of_the_same_name": alike} if alike else {}), "class_names": names, "templates": sentences, "cut": cut}


def judge_retrieval(e: "Evaluation") -> dict[str, Any]:
    towers, test = _towers(e), e.data.test
    images = e.features(test)
    readable, captions, pairs = distinct(test)
    if not captions:
        raise UserError("No test image that can be read has a caption: use protocol.between=images.")
    sentences, cut = towers.sentences(captions, e.batch_size)
    shown = images if len(readable) == len(images) else images[readable]
    ks = e.options["k"] if isinstance(e.options["k"], list) else [e.options["k"]]
    results = words_retrieval(shown, sentences, pairs, ks)
    return {"images": len(shown), "captions": pairs.shape[1], "distinct_captions": len(captions), "cut": cut, "results": results}


def _towers(e: "Evaluation") -> Towers:
    assert isinstance(e.subject.backbone, Towers)
    return e.subject.backbone
