"""Shared helpers: golden values, the command in a process of its own, real images where they are."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_zoo.data.images import Images

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("SSL_ZOO_TEST_DATA", ROOT.parent / "shared" / "data"))
GOLDEN = json.loads((Path(__file__).parent / "golden_losses.json").read_text())
SMOKE = ["experiment=smoke", "dataset.train_size=192", "dataset.test_size=64", "batch_size=32", "method.hidden_dim=64", "trainer=cpu",
         "evaluation.linear.max_iter=5", "evaluation.linear.l2=[0.01]"]  # fmt: skip

if "PYTEST_XDIST_WORKER" in os.environ:  # tests that run side by side share the cores
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def golden_input(name: str) -> torch.Tensor:
    """An input of the golden cases, regenerated from its description, float64."""
    spec = GOLDEN["inputs"][name]
    shape = spec["shape"]
    if spec["kind"] == "view":
        x = np.random.RandomState(spec["base_seed"]).randn(*shape) + spec["noise"] * np.random.RandomState(spec["noise_seed"]).randn(*shape)
    else:
        x = spec.get("scale", 1.0) * np.random.RandomState(spec["seed"]).randn(*shape) + spec.get("shift", 0.0)
    if spec["kind"] == "unit_cols":
        x = x / np.sqrt((x * x).sum(0, keepdims=True))
    return torch.from_numpy(x)


def command(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Run `ssl-zoo words...` in a process of its own."""
    paths = {"PYTHONPATH": str(ROOT), "SSL_ZOO_CACHE": str(cwd / "cache"), **env}
    return subprocess.run(
        [sys.executable, "-m", "ssl_zoo", *words], cwd=cwd, env={**os.environ, **paths}, capture_output=True, text=True, timeout=600
    )


@pytest.fixture
def cli(tmp_path):
    return lambda *words, **env: command(*words, cwd=tmp_path, **env)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SSL_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def one_thread():
    """For tensors so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def needs(folder: str) -> Path:
    """The path of a real data set; skips the test where it is absent."""
    if not (REAL / folder).is_dir():
        pytest.skip(f"the images of {folder} are not here")
    return REAL / folder


def picture(colour=(200, 30, 90), size=(40, 30), mode="RGB", form="PNG", **options):
    out = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(out, form, **options)
    return out.getvalue()


class Bytes:
    """Encoded images in memory; one that is no bytes cannot be read."""

    def __init__(self, *data, blocks=None):
        self.data, self.blocks = data, blocks

    def __len__(self):
        return len(self.data)

    def name(self, row):
        return f"picture {row}"

    def read(self, row):
        if self.data[row] is None:
            raise OSError("the disk is broken")
        return self.data[row]


def write(folder, name, data):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def numbered(n, labels=True):
    """n images whose pixels hold their number."""
    pixels = torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(n, 3, 8, 8).contiguous()
    return Images(pixels, torch.arange(n) % 3 if labels else None, ["a", "b", "c"], 8)
