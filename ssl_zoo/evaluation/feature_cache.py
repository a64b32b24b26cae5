"""Features on disk, under the hash of the weights and of the images that they are of."""

import hashlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssl_zoo.data.images import Images
from ssl_zoo.data.ondemand import OnDemand
from ssl_zoo.evaluation.features import dtype_of, eval_mode

log = logging.getLogger("ssl_zoo")
VERSION = 1  # of how features are made; another one leaves all that were kept behind


def weights_hash(module: nn.Module) -> str:
    """A hash of every parameter and buffer (name, kind, shape, bytes) and of what no weight tells, such as strides and numbers of heads."""
    digest = hashlib.blake2b(digest_size=12)
    for name, m in module.named_modules():
        digest.update(f"{name} {type(m).__name__} {m.extra_repr()} {getattr(m, 'num_heads', '')}\n".encode())
    for name, value in sorted({**dict(module.named_buffers()), **module.state_dict()}.items()):  # buffers that no file holds too
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def behaviour(net: nn.Module, size: int, device: torch.device) -> str:
    """A hash of what `net` makes of two images that are always the same: names of weights do not tell how they are used."""
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype_of(net))
    with torch.no_grad(), eval_mode(net):
        return hashlib.blake2b(_bytes(net(x).float()), digest_size=12).hexdigest()


def data_hash(images: Images) -> str:
    """A hash of the pixels, or of the encoded files where they are decoded on demand; labels do not count."""
    pixels, digest = images.pixels, hashlib.blake2b(f"{tuple(images.pixels.shape)} {images.image_size}".encode(), digest_size=12)
    if isinstance(pixels, OnDemand):
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(pixels), 4096):  # in slices, so that futures do not pile up in memory
                for part in pool.map(lambda i: _of_file(pixels, i), range(start, min(start + 4096, len(pixels)))):
                    digest.update(part)
    else:
        for part in pixels.split(4096):
            digest.update(_bytes(part))
    return digest.hexdigest()


def _of_file(pixels: OnDemand, i: int) -> bytes:
    try:
        return hashlib.blake2b(pixels.files.read(pixels.row(i)), digest_size=16).digest()
    except (OSError, ValueError):
        return b"unreadable"


def _bytes(value: Tensor) -> memoryview:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def cached(root: Path, key: str, compute: Callable[[], Tensor], keep: Callable[[], bool] = lambda: True) -> Tensor:
    """The features that an earlier call left in `root` under `key`, else those of `compute`, which are left there if `keep` says so then
    and the disk allows.
    """
    file = root / f"{hashlib.blake2b(f'{VERSION} {key}'.encode(), digest_size=12).hexdigest()}.safetensors"
    try:
        return load_file(file)["features"]
    except (OSError, SafetensorError, KeyError):  # not there, or damaged
        pass
    features = compute()
    if not keep():
        return features
    part = file.with_suffix(f".part-{os.getpid()}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        save_file({"features": features.cpu().contiguous()}, part)
        part.replace(file)
    except (OSError, SafetensorError) as e:
        log.warning("features cannot be kept in %s (%s); they are computed anew next time", root, e)
        if part.is_file():
            part.unlink()
    return features
