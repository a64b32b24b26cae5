"""ssl_zoo: self-supervised pretraining of vision backbones. Importing it is cheap and registers nothing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_zoo.loading import Pretrained as Pretrained
    from ssl_zoo.loading import load as load

__version__ = "0.1.0"
__all__ = ["Pretrained", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    if name in ("load", "Pretrained"):
        from ssl_zoo import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'ssl_zoo' has no attribute '{name}'")
