"""Methods, data paths and protocols on a device that is not the host: nothing is mixed with the host's tensors, and the numbers are equal.
Needs no GPU. Left for one: what is done for "cuda" alone (pinned batches, half precision, the compiler, SyncBatchNorm) and its kernels.
"""

import csv
import json

import numpy as np
import pytest
import torch

from tests.conftest import command, finished, picture, write
from tests.second_device import AVAILABLE, USED, install
from tests.test_resume import METHODS, SMALL_TEXT, WORDS

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this torch cannot be given a device")


def numbers(run):
    """All that metrics.csv holds, without what was timed."""
    with (run / "metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    return [{k: float(v) for k, v in row.items() if v and not k.startswith("speed/")} for row in rows]


def on(before, *words, cwd):
    """The command on the device where `before` installs it, else on the host."""
    done = command(*words, cwd=cwd, before=before)
    assert done.returncode == 0, done.stderr
    assert (USED in done.stderr) == (before is not None), done.stderr


def same(folder, *words):
    """The same run on the host and on the device."""
    for name, before in (("host", None), ("second", install)):
        on(before, *words, f"run={name}", cwd=folder)
    compare(folder)


def compare(folder):
    host, second = (numbers(folder / name) for name in ("host", "second"))
    assert host
    for one, other in zip(host, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_allclose(other[key], one[key], rtol=2e-4, atol=1e-6, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_the_same_on_another_device(method, tmp_path):
    same(tmp_path, *WORDS, "epochs=1", f"method={method}", *METHODS[method])


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["method=dino", *METHODS["dino"], "augment.local_crops=1", "augment.local.size=16", "data.resident=false"],
        ["method=byol", *METHODS["byol"], "augment.engine=kornia", "backbone=timm", "backbone.name=test_vit", "chunk_size=8"],
        ["method=simclr", *METHODS["simclr"], "optimizer=lars", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1"],
        ["method=moco", *METHODS["moco"], "dataset=folder", "dataset.path=photos", "dataset.image_size=32", "data.decoded=false"],
    ],
    ids=["memory-mapped local crops", "kornia and a transformer in chunks", "LARS in micro-batches", "decoded on demand"],
)
def test_the_rest_of_training_is_the_same_on_another_device(words, tmp_path):
    for number in range(60):
        write(tmp_path / "photos", f"{'ab'[number % 2]}/{number}.png", picture((number * 4, 90, 10)))
    usual = [w for w in WORDS if not (w.startswith("dataset") and "dataset=folder" in words)]
    same(tmp_path, *usual, "epochs=1", *words)


JUDGED = {
    "knn": [], "linear": ["protocol.max_iter=10"], "few_shot": ["protocol.draws=2", "protocol.labels=[2]"], "retrieval": [], "health": [],
    "finetune": ["protocol.epochs=2"], "linear_mocov2": ["protocol.epochs=2"], "zero_shot": [],
}  # fmt: skip


def flat(x, at=""):
    """Every number of nested results by its place, without what was timed."""
    if isinstance(x, dict):
        return {k: v for key, y in x.items() if not key.endswith("seconds") for k, v in flat(y, f"{at}.{key}").items()}
    if isinstance(x, list):
        return {k: v for n, y in enumerate(x) for k, v in flat(y, f"{at}.{n}").items()}
    return {at: x} if isinstance(x, float) else {}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", JUDGED)
def test_a_run_is_judged_the_same_on_another_device(protocol, tmp_path):
    if protocol == "zero_shot":
        assert command(*WORDS, "epochs=1", "method=clip", *SMALL_TEXT, "run=run", cwd=tmp_path).returncode == 0
    else:
        finished(tmp_path / "run")
    found = []
    for before in (None, install):
        on(before, "eval", "run=run", f"protocol={protocol}", "features.cache=false", *JUDGED[protocol], cwd=tmp_path)
        (file,) = (tmp_path / "run" / "eval").glob("*.json")
        found.append(flat(json.loads(file.read_text())))
    host, second = found
    assert host
    assert second == pytest.approx(host, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_features_are_the_same_on_another_device(tmp_path):
    finished(tmp_path / "run")
    for name, before in (("host", None), ("second", install)):
        on(before, "embed", "run=run", "data=shapes", "dataset.test_size=32", f"out={name}.npy", cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "host.npy"), np.load(tmp_path / "second.npy"), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_goes_on_the_same_on_another_device(optimizer, tmp_path):
    """Killed neither here nor there, but continued: the state of optimizer, teacher, probe and watch moves to the device."""
    words = [*WORDS, "method=byol", *METHODS["byol"], f"optimizer={optimizer}"]
    for name, before in (("host", None), ("second", install)):
        on(before, *words, "epochs=1", f"run={name}", cwd=tmp_path)
        on(before, "resume", f"run={name}", "epochs=2", cwd=tmp_path)
    compare(tmp_path)


def _mix():
    install()
    x, y, one = torch.ones(3).to("second"), torch.ones(3), torch.tensor(1.0)
    for wrong in (
        lambda: x + y,
        lambda: torch.cat([x, y]),
        lambda: torch._foreach_add_([x], [y]),
        lambda: one.add_(x.sum()),
        lambda: torch.stack([x.sum(), one]),
        lambda: y[x.long()],
        lambda: x.index_put_((torch.tensor([0, 1]),), y[:2]),
        lambda: x.normal_(generator=torch.Generator()),
        lambda: y.normal_(generator=torch.Generator("second")),
        x.numpy,
        lambda: np.asarray(x),
    ):
        with pytest.raises((RuntimeError, TypeError), match=r"two devices|not in the host's memory"):
            wrong()
    assert (x + 1).device.type == "second"
    assert (x * torch.tensor(2.0)).sum().item() == 6
    assert (x.unsqueeze_(0).shape, x.squeeze_(0).shape) == ((1, 3), (3,))
    x[torch.tensor([0])] = one
    assert x[torch.tensor([0, 2])].tolist() == [1, 1]
    assert x.normal_(generator=torch.Generator("second").manual_seed(0)).device.type == "second"


def test_a_tensor_of_the_device_does_not_mix_with_the_host(tmp_path):
    done = command("--version", cwd=tmp_path, before=_mix)
    assert done.returncode == 0, done.stderr
