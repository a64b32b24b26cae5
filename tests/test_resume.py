"""Runs that are killed and go on: bit for bit what the undisturbed run is. All of them are forked from one process that has imported."""

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ssl_zoo.callbacks.checkpoint import WholeFiles
from ssl_zoo.callbacks.evaluate import Evaluate
from ssl_zoo.cli import main
from ssl_zoo.methods.base import Method

# 6 steps in an epoch
WORDS = ["dataset=shapes", "backbone=tiny", "recipe=none", "trainer=cpu", "dataset.train_size=100", "dataset.test_size=32", "batch_size=16",
         "epochs=2", "trainer.log_every_n_steps=1", "evaluation.every_n_epochs=1", "evaluation.baselines=false",
         "evaluation.linear.final=false", "evaluation.health_every_n_steps=4"]  # fmt: skip
SMALL_TEXT = ["method.embed_dim=16", "method.text={width: 16, heads: 2, layers: 1, context: 16}"]
METHODS = {
    "clip": SMALL_TEXT,
    "siglip": SMALL_TEXT,
    "simclr": ["method.hidden_dim=32"],
    "moco": ["method.hidden_dim=32", "method.queue_size=100"],
    "moco_v3": ["method.hidden_dim=32"],
    "byol": ["method.hidden_dim=32"],
    "simsiam": ["method.proj_dim=32", "method.pred_dim=16"],
    "dino": ["method.hidden_dim=32", "method.out_dim=64", "method.freeze_last_layer=1"],
    "barlow_twins": ["method.hidden_dim=32", "method.proj_dim=32", "augment.early_size=24", "augment.early_share=0.7"],
    "vicreg": ["method.hidden_dim=32", "method.proj_dim=32"],
    "supervised": [],
}
TIMED = ("speed/images_per_s", "speed/data_wait")


def _job(words, folder, kill_at, before, env):
    """`ssl-zoo words...` in this process, without the pictures of its end; killed as batch number `kill_at` (from 0) comes."""
    os.chdir(folder)
    os.environ["SSL_ZOO_CACHE"] = str(folder / "cache")
    os.environ.update({k: str(v) for k, v in env.items()})
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}{env.get('RANK', 0)}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    torch.set_num_threads(1)
    Evaluate.save_figures = lambda *a: None
    import ssl_zoo.commands

    ssl_zoo.commands.finish = lambda summary: 0

    def on_train_batch_start(self, batch, batch_idx):
        if kill_at is not None and self.trainer.fit_loop.total_batch_idx == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    Method.on_train_batch_start = on_train_batch_start
    if before is not None:
        before()
    main(words)


def start(folder, *words, kill_at=None, before=None, env=None):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "ssl_zoo.train", "ssl_zoo.callbacks.checkpoint"])
    process = context.Process(target=_job, args=(list(words), folder, kill_at, before, env or {}))
    process.start()
    return process


def go(folder, *words, **options):
    """(exit code, what it printed); -9 for a killed one."""
    process = start(folder, *words, **options)
    process.join(300)
    return process.exitcode, (folder / "out0").read_text() + (folder / "err0").read_text()


def ranks_of(folder, *words, **options):
    """Two processes as torchrun starts them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0,
              "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    words = [*words, "trainer.devices=2", "trainer.strategy=ddp"]
    return [start(folder, *words, env={**common, "RANK": r, "LOCAL_RANK": r}, **options) for r in (0, 1)]


def go_on_two_ranks(folder, *words, limit=300, **options):
    """(exit codes, what the first one printed)"""
    ranks = ranks_of(folder, *words, **options)
    for rank in ranks:
        rank.join(limit)
    return [rank.exitcode for rank in ranks], (folder / "out0").read_text() + (folder / "err0").read_text()


def state(run, name="last.ckpt"):
    return torch.load(Path(run) / "checkpoints" / name, weights_only=True)


def differing(a, b, path=""):
    """Where two states differ, but for seconds."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [k for k in {**a, **b} if k not in ("seconds", "waited", "images", "total", "training_s", "total_s")]
        return [d for k in keys for d in differing(a.get(k), b.get(k), f"{path}/{k}")]
    if isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differing(x, y, f"{path}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    return [] if type(a) is type(b) and (a == b or a != a) else [f"{path}: {a} {b}"]


def rows(run):
    with open(Path(run) / "metrics.csv", newline="") as f:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(f)]


def same_end(a, b):
    first, second = state(a), state(b)
    assert first["global_step"] == second["global_step"]
    assert differing(first, second) == []
    assert rows(a) == rows(b)
    x, y = (load_file(Path(r) / "backbone.safetensors") for r in (a, b))
    assert x.keys() == y.keys()
    assert all(torch.equal(v, y[k]) for k, v in x.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, method):
    """Killed after step 7 of 12, with a checkpoint of that step or of one before it (SimCLR: at the end of the first epoch)."""
    every = {"simclr": [], "moco": ["checkpoint.every_n_steps=5"]}.get(method, ["checkpoint.every_n_steps=1"])
    words = [*WORDS, f"method={method}", *METHODS[method]]
    assert go(tmp_path, *words, "run=whole")[0] == 0
    code, told = go(tmp_path, *words, *every, "run=cut", kill_at=7)
    assert code == -signal.SIGKILL, told
    assert state(tmp_path / "cut")["global_step"] == {"simclr": 6, "moco": 6}.get(method, 7)
    assert load_file(tmp_path / "cut" / "checkpoints" / "backbone.safetensors")
    code, told = go(tmp_path, "resume", "run=cut")
    assert code == 0, told
    assert state(tmp_path / "cut")["global_step"] == 12
    same_end(tmp_path / "whole", tmp_path / "cut")


def _kill_behind_checkpoint(step):
    before = WholeFiles.save_checkpoint

    def save_checkpoint(self, checkpoint, *args, **kwargs):
        before(self, checkpoint, *args, **kwargs)
        if checkpoint["global_step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    WholeFiles.save_checkpoint = save_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("step", [6, 7])
def test_no_row_is_lost_that_lightning_logs_after_the_checkpoint(tmp_path, step):
    """Killed at once after the checkpoint at the end of the first epoch, which was judged, and after one within the second."""
    words = [*WORDS, "method=vicreg", *METHODS["vicreg"]]
    assert go(tmp_path, *words, "run=whole")[0] == 0
    killed = go(tmp_path, *words, "checkpoint.every_n_steps=1", "run=cut", before=partial(_kill_behind_checkpoint, step))
    assert killed[0] == -signal.SIGKILL, killed[1]
    assert [r["step"] for r in rows(tmp_path / "cut")] == [str(s) for s in range(step)]
    code, told = go(tmp_path, "resume", "run=cut")
    assert code == 0, told
    same_end(tmp_path / "whole", tmp_path / "cut")


def _draw_everywhere():
    """A method that draws from every generator there is."""
    before = Method.training_step

    def training_step(self, batch, batch_idx):
        out = before(self, batch, batch_idx)
        self.log("train/drawn", random.random() + float(np.random.rand()) + float(torch.rand(())))
        return out

    Method.training_step = training_step


@pytest.mark.slow
@pytest.mark.parametrize("method", ["byol", "moco"])
def test_between_two_batches_of_one_step(tmp_path, method):
    """Two batches make a step; killed as the second one of step 5 comes, with the checkpoint of step 4. 6 steps, 12 batches."""
    words = [*WORDS, f"method={method}", *METHODS[method], "trainer.accumulate_grad_batches=2", "method.momentum=0.9"]
    assert go(tmp_path, *words, "run=whole", before=_draw_everywhere)[0] == 0
    code, told = go(tmp_path, *words, "checkpoint.every_n_steps=2", "run=cut", kill_at=9, before=_draw_everywhere)
    assert code == -signal.SIGKILL, told
    assert state(tmp_path / "cut")["global_step"] == 4
    code, told = go(tmp_path, "resume", "run=cut", "evaluation.map=tsne", before=_draw_everywhere)
    assert code == 0, told
    assert "changed       evaluation.map: pca -> tsne\n" in told
    assert "continuing    cut after step 4\n" in told
    same_end(tmp_path / "whole", tmp_path / "cut")
    assert len({r["train/drawn"] for r in rows(tmp_path / "cut") if r["train/drawn"]}) == 6


@pytest.mark.slow
@pytest.mark.parametrize("method", ["moco", "dino"])
def test_on_two_ranks(tmp_path, method):
    """Both killed after step 7 of 12, within the second epoch; DINO's steps are of two batches of each rank."""
    accumulate = 2 if method == "dino" else 1
    words = [*WORDS, f"method={method}", *METHODS[method], f"batch_size={8 // accumulate}", f"trainer.accumulate_grad_batches={accumulate}"]
    codes, told = go_on_two_ranks(tmp_path, *words, "run=whole", before=_draw_everywhere)
    assert codes == [0, 0], told
    kill = 7 * accumulate + accumulate - 1
    codes, told = go_on_two_ranks(tmp_path, *words, "checkpoint.every_n_steps=1", "run=cut", kill_at=kill, before=_draw_everywhere)
    assert codes == [-signal.SIGKILL] * 2, told
    assert state(tmp_path / "cut")["global_step"] == 7
    again = [w for w in words if not w.startswith("run=")]
    codes, told = go_on_two_ranks(tmp_path, *again, "checkpoint.every_n_steps=1", "run=cut", "resume=auto", before=_draw_everywhere)
    assert codes == [0, 0], told
    assert "continuing    cut after step 7\n" in told
    same_end(tmp_path / "whole", tmp_path / "cut")


def _note_images():
    """What each optimizer step saw, in a file for each step and rank."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with open(f"seen-{self.global_rank}.txt", "a") as f:
            f.write(f"{self.trainer.global_step} {' '.join(map(str, batch['index'].tolist()))}\n")

    Method.on_train_batch_end = on_train_batch_end


def seen(folder):
    """{step: the images of it}, and the files are gone."""
    found = {}
    for file in sorted(folder.glob("seen-*.txt")):
        for line in file.read_text().splitlines():
            step, *images = map(int, line.split())
            found.setdefault(step, set()).update(images)
        file.unlink()
    return found


@pytest.mark.slow
def test_another_number_of_devices_sees_the_same_images(tmp_path):
    """Two ranks of 8, killed after step 7, go on as one device of 8 that accumulates two batches: every step sees what it would have."""
    words = [*WORDS, "method=simclr", *METHODS["simclr"]]
    assert go(tmp_path, *words, "batch_size=16", "run=whole", before=_note_images)[0] == 0
    undisturbed = seen(tmp_path)
    assert [len(images) for images in undisturbed.values()] == [16] * 12
    codes, told = go_on_two_ranks(tmp_path, *words, "batch_size=8", "checkpoint.every_n_steps=1", "run=cut", kill_at=7, before=_note_images)
    assert codes == [-signal.SIGKILL] * 2, told
    before = seen(tmp_path)
    code, told = go(tmp_path, "resume", "run=cut", "trainer.devices=1")
    assert code == 2
    assert "cannot change the 16 images per step to 8" in told
    code, told = go(tmp_path, "resume", "run=cut", "trainer.devices=1", "trainer.accumulate_grad_batches=2", before=_note_images)
    assert code == 0, told
    after = {}
    for step, images in seen(tmp_path).items():  # of the first batch of a step, the step before is the newest
        after.setdefault(step, set()).update(images)
    assert set.union(*after.values()) == set.union(*(undisturbed[s] for s in range(8, 13)))
    assert {**before} == {s: undisturbed[s] for s in range(1, 8)}
    assert state(tmp_path / "cut")["global_step"] == 12
    assert state(tmp_path / "cut")["callbacks"]["Place"]["seen"] == state(tmp_path / "whole")["callbacks"]["Place"]["seen"] == 96


def _signal_while_judging(epoch):
    """SIGTERM to this process as an epoch begins to be judged, for longer than it may take."""
    evaluate = Evaluate.evaluate

    def slow(self, module, bank, number):
        if number == epoch:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        return evaluate(self, module, bank, number)

    Evaluate.evaluate = slow


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 3])
def test_the_best_epoch_may_be_judged_by_the_process_that_goes_on(tmp_path, epoch):
    """The first of three epochs, and the last, which a resumed run has nothing to train after."""
    words = [*WORDS, "method=simclr", *METHODS["simclr"], "epochs=3", "checkpoint.best=health/uniformity", "preemption.deadline_s=0"]
    assert go(tmp_path, *words, "run=whole")[0] == 0
    code, told = go(tmp_path, *words, "run=cut", before=partial(_signal_while_judging, epoch))
    assert code == 143, told
    code, told = go(tmp_path, "resume", "run=cut")
    assert code == 0, told
    whole, cut = (json.loads((tmp_path / name / "checkpoints" / "best.json").read_text()) for name in ("whole", "cut"))
    assert whole == cut
    first, second = (state(tmp_path / name, "best.ckpt")["state_dict"] for name in ("whole", "cut"))
    assert all(torch.equal(v, second[k]) for k, v in first.items())


@pytest.mark.slow
def test_a_signal_after_training_is_answered(tmp_path):
    """By the process that goes on as well, which has only to judge."""
    words = [*WORDS, "method=simclr", *METHODS["simclr"], "preemption.deadline_s=0"]
    for command in ([*words, "run=cut"], ["resume", "run=cut"]):
        code, told = go(tmp_path, *command, before=partial(_signal_while_judging, 2))
        assert code == 143, told
        assert "when all was trained, before it was judged; nothing is lost (SIGTERM)" in told
    assert go(tmp_path, "resume", "run=cut")[0] == 0


@pytest.mark.slow
def test_a_checkpoint_of_another_method_is_told(tmp_path):
    for method in ("simclr", "byol"):
        assert go(tmp_path, *WORDS, f"method={method}", *METHODS[method], f"run={method}", "epochs=1")[0] == 0
    shutil.copy(tmp_path / "byol/checkpoints/last.ckpt", tmp_path / "simclr/checkpoints/last.ckpt")
    code, told = go(tmp_path, "resume", "run=simclr", "epochs=2")
    assert code == 2
    assert "Traceback" not in told
    assert "last.ckpt is of another config than simclr/config.yaml" in told


@pytest.mark.slow
def test_a_truncated_checkpoint_and_a_full_disk_cost_nothing_that_was_saved(tmp_path):
    """A run on a disk with room for two checkpoints and weights; enlarged, truncated on top of it, it ends as if nothing had happened."""
    words = [*WORDS, "method=simclr", *METHODS["simclr"], "checkpoint.best=eval/knn_top1"]
    assert go(tmp_path, *words, "checkpoint.every_n_steps=1", "checkpoint.keep=2", "run=whole")[0] == 0
    whole = tmp_path / "whole" / "checkpoints"
    assert sorted(f.name for f in whole.iterdir()) == ["backbone.safetensors", "best.ckpt", "best.json", "last.ckpt", "previous.ckpt",
                                                       "step-00000011.ckpt", "step-00000012.ckpt"]  # fmt: skip
    assert (whole / "step-00000012.ckpt").samefile(whole / "last.ckpt")
    measured = [(float(r["eval/knn_top1"]), -int(r["step"])) for r in rows(tmp_path / "whole") if r["eval/knn_top1"]]
    best = json.loads((whole / "best.json").read_text())
    assert best["value"] == max(measured)[0]
    assert best["step"] == state(tmp_path / "whole", "best.ckpt")["global_step"] == {-5: 6, -12: 12}[max(measured)[1]]

    disk = tmp_path / "disk"
    disk.mkdir()
    size = (whole / "last.ckpt").stat().st_size
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(3.2 * size)}", "tmpfs", str(disk)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not allowed here")
    try:
        code, told = go(tmp_path, *words, "checkpoint.every_n_steps=1", "run=disk/run")
        assert code == 2
        assert "Traceback" not in told
        assert told.count("disk/run/checkpoints/last.ckpt cannot be written (No space left on device)") == 1
        assert told.rstrip().endswith("ssl-zoo resume run=disk/run")
        assert not list(disk.rglob("*.part"))
        assert state(disk / "run")["global_step"] == 2
        subprocess.run(["mount", "-o", f"remount,size={10 * size}", str(disk)], check=True)
        last = disk / "run" / "checkpoints" / "last.ckpt"
        last.write_bytes(last.read_bytes()[: size // 2])
        code, told = go(tmp_path, "resume", "run=disk/run")
        assert code == 0, told
        assert told.count("last.ckpt cannot be read") == 1
        assert "going on from the checkpoint before it, of step 1." in told
        shutil.copytree(disk / "run", tmp_path / "cut")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    same_end(tmp_path / "whole", tmp_path / "cut")
