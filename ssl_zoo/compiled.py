"""`trainer.compile`: which networks are compiled, and what is said where that fails."""

import torch

from ssl_zoo.collapse.teacher import Teacher
from ssl_zoo.errors import UserError, one_line
from ssl_zoo.methods.base import Method


def compile_backbones(method: Method) -> None:
    """Have torch compile the backbone, and the copy of it that a teacher is, when they are first used."""
    for backbone in (method.backbone, *(m.network[0] for m in method.modules() if isinstance(m, Teacher))):
        backbone.compile()


def uncompiled(e: BaseException) -> UserError | None:
    """The sentence on a compilation that failed, for want of a working compiler on this machine most often."""
    if not isinstance(e, torch._dynamo.exc.TorchDynamoException):
        return None
    why = one_line(str(e).strip().splitlines()[0])
    return UserError(f"The backbone cannot be compiled on this machine: {why}; trainer.compile=false trains without.")
