"""Weights from elsewhere in a timm backbone: all of them under the right names, or a sentence that says why not."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ssl_zoo.errors import UserError
from ssl_zoo.nn.architecture import architecture
from ssl_zoo.nn.checkpoint_file import read_checkpoint
from ssl_zoo.nn.fitting import casts, check_architecture, check_names, fit_patches, fit_positions, set_unstated, some
from ssl_zoo.nn.layouts import Contents, State, contents, layout_words, part_of
from ssl_zoo.nn.timm_names import to_timm

UNKNOWN = "not known, outside of the network that was loaded"


@dataclass(frozen=True)
class LoadReport:
    """What was loaded. layout: whose checkpoint, and what the names began with. matched: names of the backbone that were filled.
    left: names in the file that are not of this backbone, by what they are. notes: what was changed, and what no file of weights states.
    """

    layout: str
    matched: tuple[str, ...]
    left: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        left = [f"left     {len(names):4d} {what}: {some(names)}" for what, names in self.left.items()]
        return [f"layout   {self.layout}", f"loaded   {len(self.matched):4d} tensors", *left, *(f"note     {note}" for note in self.notes)]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def load_weights(backbone: nn.Module, source: str | Path | Mapping[str, Any], net: str = "auto") -> LoadReport:
    """Fill every parameter and buffer of `backbone` from a file (or what `read_checkpoint` gave of one), or leave it as it was.

    net: where a file has both, "student" or "teacher"; "auto" takes the one that the paper evaluates. Positions of a transformer are
    resampled to the size of the backbone's images. What names do not tell but the project is known for is set, and noted: the padding of
    solo-learn's CIFAR stems, the number of heads of MoCo v3's transformers.
    Raises UserError where anything of the network is missing, unknown or of another shape.
    """
    own = backbone.state_dict()
    found = contents(read_checkpoint(Path(source)) if isinstance(source, (str, Path)) else source, own)
    words, notes = _choose(found, net, own)
    network, project = found.networks[words], layout_words(found, words)
    state, naming = to_timm(network.state)
    left = _left(found, words, state, own)
    check_architecture(state, own)
    positions = state.get("pos_embed")
    notes += fit_positions(backbone, state, own) + fit_patches(state, own, project)
    check_names(state, own)
    notes += casts(state, own)
    backbone.load_state_dict({**own, **state}, strict=True)
    notes += set_unstated(backbone, project, positions)
    if hasattr(backbone, "pretrained"):
        backbone.pretrained = True  # type: ignore[assignment]
    prefix = network.prefix.removeprefix("state_dict").strip(".")
    layout = f"{project}{': ' if prefix else ''}{prefix} ({naming})"
    return LoadReport(layout, tuple(n for n in own if n in state), left, tuple(notes))


def _choose(found: Contents, net: str, own: State) -> tuple[str, list[str]]:
    """The prefix of the network to load, and a note where the file has two."""
    if net not in ("auto", "student", "teacher"):
        raise UserError(f"net is auto, student or teacher, not {net}.")
    if not found.networks:
        raise UserError(
            f"The file holds no network, only {', '.join(found.parts) or 'no tensors at all'}: check that it is the right file."
        )
    states = {words: to_timm(n.state)[0] for words, n in found.networks.items()}
    known = [w for w, s in states.items() if _whole(s, own)]
    known = known or [max(states, key=lambda w: len(states[w]))]
    teachers = [w for w in known if found.networks[w].whose == "teacher"]
    students = [w for w in known if w not in teachers]
    if net != "auto" and not (teachers if net == "teacher" else students):
        raise UserError(f"The file holds no {net} ({_prefixes(found, known)}): leave net=auto.")
    taken = net if net != "auto" else "teacher" if not students or (teachers and _evaluates_teacher(found, students)) else "student"
    chosen = teachers if taken == "teacher" else students
    if len(chosen) > 1:
        raise UserError(f"The file holds several networks ({_prefixes(found, chosen)}): save the state_dict() of the one you mean.")
    other = "student" if taken == "teacher" else "teacher"
    return chosen[0], [f"the {taken}'s network, of two: net={other} takes the other"] if teachers and students else []


def _whole(state: State, own: State) -> bool:
    """Whether these look like a network and not like a head or a few stray tensors."""
    return architecture(state) is not None or 2 * len(state.keys() & own.keys()) > len(own)


def _evaluates_teacher(found: Contents, students: Iterable[str]) -> bool:
    """DINO's, by the words of its code and of lightly's; by the centre of its loss in ours. Elsewhere the momentum network is a means."""
    words = {word for prefix in students for word in prefix.split(".")}
    ours = "unseen_step" in found.keys and any("center" in name.split(".") for name in found.outside(""))
    return ours or bool(words & {"student", "student_backbone", "student_encoder"})


def _prefixes(found: Contents, words: Iterable[str]) -> str:
    return ", ".join(found.networks[w].prefix or "names without a prefix" for w in words)


def _left(found: Contents, words: str, state: State, own: State) -> dict[str, tuple[str, ...]]:
    """What is not of the backbone, by what it is. Names in the network itself that are no head stay in `state`, to be refused."""
    left = {part: list(names) for part, names in found.parts.items()}
    for other, network in found.networks.items():
        whose = f"the {network.whose}'s network" if network.whose != "both" else "another network"
        whole = _whole(to_timm(network.state)[0], own)
        for name in network.state if other != words else ():
            left.setdefault(whose if whole else part_of(name) or UNKNOWN, []).append(f"{other}.{name}".strip("."))
    for name in [n for n in state if n not in own]:
        if part := part_of(name, inside=True):
            left.setdefault(part, []).append(f"{words}.{name}".strip("."))
            del state[name]
    return {part: tuple(names) for part, names in left.items()}
