"""Where a command that does not train computes."""

import torch

from ssl_zoo.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device called `name` (cpu, cuda, cuda:1, mps), or for "auto" a GPU where there is one. Raises UserError for one that cannot be
    used here.
    """
    if name != "auto":
        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as e:
            raise UserError(f"device={name} cannot be used here ({str(e).splitlines()[0]}): choose auto or cpu.") from e
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
