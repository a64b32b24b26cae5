"""ssl_zoo: self-supervised pretraining of vision backbones. Importing it is cheap and registers nothing."""

__version__ = "0.1.0"
