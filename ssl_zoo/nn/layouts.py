"""How other projects lay out a checkpoint: which of its tensors are a network's, whose it is, and what the names mean under timm.

Known are state dicts of timm and torchvision (ResNet, DenseNet, VisionTransformer), the official checkpoints of DINO, MoCo, MoCo v3,
SimSiam, Barlow Twins, VICReg and MAE, those of solo-learn and lightly, and our own.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ssl_zoo.errors import UserError

State = dict[str, Tensor]

TEACHERS = set(
    "teacher teacher_backbone teacher_encoder momentum_backbone momentum_encoder backbone_momentum encoder_momentum encoder_k key_backbone "
    "key_encoder target_network target_encoder model_ema state_dict_ema".split()
)
STUDENTS = set(
    "student student_backbone student_encoder encoder_q query_backbone query_encoder base_encoder online_network online_encoder".split()
)
NEUTRAL = set("state_dict model_state_dict model net network backbone encoder vit visual trunk".split())
TRAINING = re.compile(r"(optim|.*sched|scaler|fp16|loops|callbacks|args|config|hyper_parameters|epoch|step|iter|global_step|amp)")
OWNER = r"(momentum_|student_|teacher_|online_|target_|key_|query_)?"
COPY = r"(_momentum|_ema|_student|_teacher)?$"
PARTS = {  # the first word of a name outside of networks
    "projector": rf"{OWNER}(projector|project|projection(_head)?|proj_head|dino_head|ibot_head|head|bn|fc){COPY}",
    "predictor": rf"{OWNER}(predictor|prediction_head){COPY}",
    "classifier": rf"{OWNER}(classifier|linear|probe){COPY}",
    "queue": r"\w*queue(_ptr|_index|_y)?$",
    "prototypes": r"prototypes?\d*$",
    "text tower": r"(text|token_embedding|positional_embedding|transformer|ln_final|text_projection)$",
    "state of the loss": r"(logit_scale|log_scale|logit_bias|bias|center|dino_loss|ibot_patch_loss|criterion\w*|loss\w*|sinkhorn)$",
    "state of the evaluation": r"(knn|val_\w+|train_\w+|metrics?)$",
    "augmentation": r"augment\w*$",
    "decoder of masked patches": r"(decoder\w*|mask_token)$",
}
TAIL = r"(weight(_g|_v)?|bias|running_mean|running_var|num_batches_tracked)$"
FIRST = "(fc|classifier|classif|linear|last_linear|heads?(_dist)?)"
THEN = r"((head(_dist)?|classifier|fc|fc2|linear|mlp|last_layer|layers?|l|proj)\.)*(\d+\.)?"
HEAD = re.compile(rf"{FIRST}\.{THEN}{TAIL}")  # under a network's own names; timm keeps norms of a head with the backbone
BESIDE = {"projector", "projection_head", "predictor", "prediction_head"}  # words that may stand among a network's own names


@dataclass
class Network:
    """Tensors of one network of a file. prefix: what their names began with, as written in the file. whose: student | teacher | both."""

    prefix: str
    whose: str
    state: State


@dataclass
class Contents:
    """networks by their prefix without wrappers; parts: names of everything else, by what it is."""

    networks: dict[str, Network]
    parts: dict[str, list[str]]
    keys: set[str]  # of the file itself

    def outside(self, words: str) -> list[str]:
        """The names of everything but the network with this prefix."""
        others = [f"{w}.{name}".strip(".") for w, n in self.networks.items() if w != words for name in n.state]
        return others + [name for names in self.parts.values() for name in names]


def contents(content: Any, own: Collection[str]) -> Contents:
    """The networks and other parts of what a file holds. own: the names of the backbone that is to be filled."""
    if not isinstance(content, Mapping):
        what = getattr(content, "origin", type(content).__name__)
        raise UserError(f"The file holds one object ({what}) and not tensors by name: save the state_dict() of its model.")
    parts: dict[str, list[str]] = {}
    networks: dict[str, Network] = {}
    own_words = {name.split(".")[0] for name in own}
    for name, tensor in _tensors(content, parts).items():
        plain = re.sub(r"(^|(?<=\.))((module|_orig_mod)\.)+", "", name)
        plain = re.sub(r"(^|(?<=\.))teacher\.network\.([01])\.", lambda m: f"teacher.{('backbone', 'projector')[int(m[2])]}.", plain)
        words, rest = _split(plain, own_words)
        network = networks.setdefault(words, Network(name.removesuffix(rest).rstrip("."), _whose(words), {}))
        if rest in network.state:
            raise UserError(f"The file names {plain} twice, with and without a wrapper such as module.: save one network's state_dict().")
        network.state[rest] = tensor
    for words in [w for w, n in networks.items() if all(part_of(name) for name in n.state)]:
        for name in networks[words].state:
            parts.setdefault(part_of(name) or "", []).append(f"{words}.{name}".strip("."))
        del networks[words]
    _lightly_teacher(networks)
    return Contents(networks, parts, {str(k) for k in content})


def _tensors(content: Mapping, parts: dict[str, list[str]]) -> State:
    """Tensors by name, those of tables in the file as table.name; what belongs to training goes to `parts`."""
    flat: State = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            flat[str(key)] = value.detach()
        elif TRAINING.match(str(key).lower()):
            parts.setdefault("state of training", []).append(str(key))
        elif isinstance(value, Mapping):
            flat.update({f"{key}.{name}": t.detach() for name, t in value.items() if isinstance(t, Tensor)})
    return flat


def _split(name: str, own_words: set[str]) -> tuple[str, str]:
    """The leading words that say whose network a tensor is of, and its name within that."""
    words, n = name.split("."), 0
    while n < len(words) - 1 and words[n] in TEACHERS | STUDENTS | NEUTRAL and words[n] not in own_words:
        if words[n] == "encoder" and words[n + 1] in ("layers", "pos_embedding", "ln"):  # torchvision's VisionTransformer
            break
        n += 1
    return ".".join(words[:n]), ".".join(words[n:])


def _whose(words: str) -> str:
    found = set(words.split("."))
    return "teacher" if found & TEACHERS else "student" if found & STUDENTS else "both"


def _lightly_teacher(networks: dict[str, Network]) -> None:
    """lightly's own runs call the teacher `backbone` where there is a `student_backbone`, and have no other one."""
    if not any(n.whose == "teacher" for n in networks.values()):
        for words, network in networks.items():
            if re.sub(r"\bbackbone\b", "student_backbone", words) in networks.keys() - {words}:
                network.whose = "teacher"


def part_of(name: str, inside: bool = False) -> str | None:
    """What a tensor outside of backbones is of; None where that is not known. inside: whether it stands among a network's own names."""
    if inside and HEAD.match(name):
        return "classifier or projector"
    word = name.split(".")[0]
    part = next((part for part, pattern in PARTS.items() if re.match(pattern, word)), None)
    return part if not inside or word in BESIDE or part in ("queue", "decoder of masked patches") else None


def layout_words(found: Contents, words: str) -> str:
    """Which project lays out its files like this; words: the prefix of the network that is loaded."""
    outside, last, state = found.outside(words), words.split(".")[-1], found.networks[words].state
    lightning = "pytorch-lightning_version" in found.keys
    rules = {
        "ssl_zoo": "unseen_step" in found.keys,
        "open_clip": last in ("visual", "trunk"),
        "MoCo v1/v2": last in ("encoder_q", "encoder_k"),
        "MoCo v3": any("base_encoder" in w for w in found.networks),
        "DINO": bool({"student", "teacher"} & found.keys),
        "solo-learn": lightning and last.endswith(("backbone", "encoder")) and _has(outside, "classifier"),
        "MAE": "decoder_embed.weight" in state,
        "Barlow Twins": words == "model.backbone" and _has(outside, "projector") and _has(outside, "bn"),
        "VICReg": words == "model.backbone" and _has(outside, "projector"),
        "SimSiam": last == "encoder" and _has(outside, "predictor") and len(found.networks) == 1,
        "lightly": "0.weight" in state or _has(outside, "projection_head"),
    }
    return next((project for project, holds in rules.items() if holds), "a state dict")


def _has(names: Collection[str], word: str) -> bool:
    return any(word in n.split(".") for n in names)
