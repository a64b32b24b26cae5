"""Where a config may come from: our files and those of folders that were named, never the environment or what else is installed."""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import hydra
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssl_zoo.errors import UserError, one_line

KEY = re.compile(r"\$\{[\w.\-\[\]]+\}")  # ${another.key}; ${a resolver:...} could take a password from the environment


class Folders(ConfigRepository):
    """Hydra's view of the folders of configs. A list of defaults may not lead out of them."""

    def _find_object_source(self, config_path: str, object_type: ObjectType | None) -> Any:
        if ".." in PurePosixPath(config_path.replace("\\", "/")).parts:
            raise UserError(f"A list of defaults names {config_path}, which lies outside of its folder of configs: copy it there.")
        return super()._find_object_source(config_path, object_type)


@contextmanager
def own_plugins() -> Iterator[None]:
    """Keep Hydra from importing the plugins of other packages, which could add configs to ours or break: composing needs none."""
    before = sys.modules.get("hydra_plugins")
    sys.modules["hydra_plugins"] = None  # type: ignore[assignment]  # importing it now fails, as where there is none
    try:
        Plugins.instance()
        yield
    finally:
        if before is None:
            sys.modules.pop("hydra_plugins", None)
        else:
            sys.modules["hydra_plugins"] = before


def composed(name: str, lines: Iterable[str], **options: Any) -> DictConfig:
    """What Hydra composes, whose values are plain or name other keys."""
    try:
        config = hydra.compose(name, list(lines), **options)
    except (HydraException, OmegaConfBaseException, UserError):
        raise
    except Exception as e:  # Hydra has more kinds of errors for words that it does not understand
        raise UserError(f"{one_line(e)[:300]}: look at the words of the command; ssl-zoo --help has examples.") from e
    refuse_resolvers({k: v for k, v in OmegaConf.to_container(config, resolve=False).items() if k != "hydra"})  # type: ignore[union-attr]
    return config


def refuse_resolvers(node: Any, path: str = "") -> None:
    """Refuse values that would take something from elsewhere, such as ${oc.env:HOME}: they would be saved and shown with the config."""
    if isinstance(node, dict):
        for key, value in node.items():
            refuse_resolvers(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            refuse_resolvers(value, f"{path}.{i}")
    elif isinstance(node, str) and "${" in node:
        rest, before = node, ""
        while rest != before:  # ${a.${b}} from the inside out
            rest, before = KEY.sub("x", rest), rest
        if "${" in rest or "\\${" in node:
            raise UserError(f"{path}={node[:80]} does not work: write the value itself, or another key as in ${{epochs}}.")
