"""What a `_target_` of the configuration names, made from its config; only of trusted packages. Imports no more than it makes."""

from typing import Any

import hydra
from omegaconf import DictConfig

from ssl_zoo.checks import check_located
from ssl_zoo.config import plain
from ssl_zoo.errors import UserError


def build(config: DictConfig, slot: str, **kwargs: Any) -> Any:
    """What `_target_` of the group `slot` names, called with its config and `kwargs`; only from trusted packages."""
    node = config[slot]
    check_located(plain(node), slot, config.trust)
    try:
        return hydra.utils.instantiate(node, _partial_=True, _convert_="all")(**kwargs)
    except TypeError as e:
        if "argument" not in str(e):
            raise
        raise UserError(f"{slot}={node._target_} cannot be made from its config: {e}.") from e
