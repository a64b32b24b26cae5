"""Shared helpers: golden values, the command in a process of its own, real images where they are."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
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


def command(
    *words: str, cwd: Path, anew: bool = False, before: Callable[[], None] | None = None, **env: str
) -> subprocess.CompletedProcess:
    """Run `ssl-zoo words...` in a process of its own: forked from one that has imported everything, or started anew as a user's is.

    before: called first, there.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SSL_ZOO_CACHE": str(cwd / "cache"), **env}
    starts_others = "-m" in words or "trainer.devices=2" in words
    if "forkserver" not in multiprocessing.get_all_start_methods():
        if before is not None:
            pytest.skip("processes cannot be forked here")
        anew = True
    if anew or starts_others:
        assert before is None
        return subprocess.run([sys.executable, "-m", "ssl_zoo", *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ssl_zoo.train", "ssl_zoo.evaluate", "ssl_zoo.reports.html", "lightning.pytorch"])
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        process = context.Process(target=_main, args=(words, cwd, env, files, before))
        process.start()
        process.join(600)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(words, 600)
        return subprocess.CompletedProcess(words, process.exitcode, *(f.read_text() for f in files))


def _main(words: tuple[str, ...], cwd: Path, env: dict[str, str], files: list[Path], before: Callable[[], None] | None) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    multiprocessing.set_start_method("fork", force=True)  # of data workers, as in a command
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    sys.argv = ["ssl-zoo", *words]
    if before is not None:
        before()
    from ssl_zoo.cli import main

    main([*words])


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


def finished(run, *words):
    """A run folder as training leaves it, with weights as they were drawn and running statistics as if it had seen something."""
    from ssl_zoo.build import build_data, build_method
    from ssl_zoo.config import compose, plain
    from ssl_zoo.evaluation.features import as_bytes, centre
    from ssl_zoo.evaluation.pictures import save_figure_data
    from ssl_zoo.export import save_backbone
    from ssl_zoo.saved import save_config

    torch.manual_seed(0)
    config = compose("train", ["experiment=smoke", "dataset.train_size=32", "dataset.test_size=16", *words])
    data = build_data(config)
    method = build_method(config, data).eval()
    for m in method.evaluated.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
    run.mkdir(parents=True)
    about = {"name": run.name, "image_size": data.train.image_size, "mean": data.mean, "std": data.std, "backbone": plain(config.backbone)}
    save_backbone(method.evaluated, run / "backbone.safetensors", about | {"epochs": 2})
    save_config(config, run, ["ssl-zoo"])
    save_figure_data(run / "figures", {"originals": as_bytes(centre(data.test.pixels[:8], data.test.image_size))})
    summary = json.loads((ROOT / "docs/results/simclr-tiny-shapes.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "name": run.name, "run": str(run)}))
    return run
