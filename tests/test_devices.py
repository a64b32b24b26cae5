"""Several ranks and signals: everything is saved, nobody waits for ever, and it is said once."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMOKE, command, picture, write
from safetensors.torch import load_file

SHORT = [*SMOKE, "dataset.train_size=64", "batch_size=8", "epochs=2", "evaluation.baselines=false", "evaluation.linear.final=false",
         "method.hidden_dim=16"]  # fmt: skip
pytestmark = pytest.mark.slow


# ---------------------------------------------------------------------------------------------- ranks as torchrun starts them
class Ranks:
    """`ssl-zoo words` on each rank of torchrun's environment, forked from a process that has imported everything. spy: what to do first."""

    def __init__(self, folder, words, world=2, spy=None, **env):
        if "forkserver" not in multiprocessing.get_all_start_methods():
            pytest.skip("processes cannot be forked here")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ssl_zoo.train", "lightning.pytorch"])
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.folder, self.files = folder, [folder / f"{time.monotonic_ns()}-{r}" for r in range(world)]
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": world,
            "TORCHELASTIC_RUN_ID": "x",
        }
        own = [{**shared, "RANK": r, "LOCAL_RANK": r} if world > 1 else {} for r in range(world)]
        cache = {"SSL_ZOO_CACHE": folder / "cache"}
        self.jobs = [
            context.Process(target=_enter, args=(folder, self.files[r], [*words], spy, {**cache, **own[r], **env})) for r in range(world)
        ]
        for job in self.jobs:
            job.start()

    def wait(self, *ranks, limit=90):
        """Exit codes of `ranks`, of all where none is named."""
        deadline = time.monotonic() + limit
        jobs = [self.jobs[r] for r in ranks] if ranks else self.jobs
        for job in jobs:
            job.join(max(0, deadline - time.monotonic()))
        codes = [job.exitcode for job in jobs]
        for job in self.jobs:
            if job.is_alive() and (not ranks or None in codes or job not in jobs):
                job.kill()
                job.join()
        return codes

    def said(self, rank, stream="err"):
        return Path(f"{self.files[rank]}.{stream}").read_text()

    def reach(self, text):
        """Wait until a file of this name is in the folder."""
        deadline = time.monotonic() + 90
        while not (self.folder / text).exists():
            assert time.monotonic() < deadline, self.said(0)
            time.sleep(0.05)


def _enter(folder, file, words, spy, env):
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a command: data workers are of its process group
    os.chdir(folder)
    os.environ.update({k: str(v) for k, v in env.items()})
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{file}.{stream}", os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["ssl-zoo", *words]
    if spy:
        spy[0](*spy[1:])
    from ssl_zoo.cli import main

    main(words)


def at_step(step, rank, what, *args):
    """Before the forward of optimizer step `step` (from 0), on `rank`: call what(*args). Leaves a file that says so."""
    from ssl_zoo.methods.base import Method

    before = Method.training_step

    def training_step(self, batch, i):
        if self.trainer.global_step == step and self.trainer.global_rank == rank:
            Path("reached").touch()
            what(*args)
        return before(self, batch, i)

    Method.training_step = training_step


def suicide(number):
    os.kill(os.getpid(), number)


def saved(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def rows(run):
    lines = (run / "metrics.csv").read_text().splitlines()
    found = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    return [{k: v for k, v in row.items() if v and not k.startswith("speed/")} for row in found]


# ---------------------------------------------------------------------------------------------- signals
@pytest.mark.parametrize(("name", "code", "reaches"), [("SIGINT", 130, (0, 1)), ("SIGTERM", 143, (1,)), ("SIGUSR2", 75, (0, 1))])
def test_a_signal_to_ranks_saves_what_all_have_trained(tmp_path, name, code, reaches):
    spy = (at_step, 2, 0, time.sleep, 2)
    ranks = Ranks(tmp_path, [*SHORT, "run=r", "dataset.train_size=512"], spy=spy)
    ranks.reach("reached")
    for r in reaches:
        os.kill(ranks.jobs[r].pid, getattr(signal, name))
    assert ranks.wait() == [code, 0], ranks.said(0)
    step = saved(tmp_path / "r")["global_step"]
    assert f"Stopped after step {step}; nothing is lost ({name}). Continue with: ssl-zoo resume run=r" in ranks.said(0)
    assert not ranks.said(1)
    assert ranks.said(0).strip().count("\n") == 0
    assert not ranks.said(1, "out")


def hang_in_evaluation():
    from ssl_zoo.callbacks.evaluate import Evaluate

    def evaluate(self, *args):
        Path("judging").touch()
        time.sleep(100)

    Evaluate.evaluate = evaluate


def test_an_evaluation_that_a_signal_cuts_off_is_made_up_for(tmp_path):
    whole = Ranks(tmp_path, [*SHORT, "run=whole"], world=1)
    assert whole.wait() == [0], whole.said(0)
    cut = Ranks(tmp_path, [*SHORT, "run=cut", "preemption.deadline_s=1"], world=1, spy=(hang_in_evaluation,))
    cut.reach("judging")
    os.kill(cut.jobs[0].pid, signal.SIGTERM)
    assert cut.wait(limit=20) == [143], cut.said(0)
    assert "Stopped after epoch 1, before it was judged; nothing is lost (SIGTERM). Continue with: ssl-zoo resume run=cut" in cut.said(0)
    assert saved(tmp_path / "cut")["global_step"] == 8
    again = Ranks(tmp_path, ["resume", "run=cut"], world=1)
    assert again.wait() == [0], again.said(0)
    a, b = (load_file(tmp_path / r / "backbone.safetensors") for r in ("whole", "cut"))
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    assert [r["step"] for r in rows(tmp_path / "cut") if "eval/knn_top1" in r] == ["7", "16"]


def test_a_signal_to_the_group_leaves_workers_to_the_training_process(tmp_path):
    for i in range(48):
        write(tmp_path / "photos", f"{i % 2}/{i}.png", picture(colour=(5 * i, 30, 90)))
    words = ["dataset=folder", "dataset.path=photos", "dataset.image_size=32", "trainer=cpu", "batch_size=4", "epochs=200", "recipe=none",
             "data.decoded=false", "data.worker_kind=process", "data.workers=2", "method.hidden_dim=16"]  # fmt: skip
    run = Ranks(tmp_path, [*words, "run=r"], world=1, spy=(at_step, 2, 0, wait_with_workers))
    run.reach("workers")
    assert int((tmp_path / "workers").read_text()) == 2
    group = run.jobs[0].pid
    os.killpg(group, signal.SIGTERM)
    assert run.wait() == [143], run.said(0)
    assert re.fullmatch(r"\s*Stopped after step 3; nothing is lost \(SIGTERM\)\. Continue with: ssl-zoo resume run=r\s*", run.said(0))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    pytest.fail("workers are left")


def sigterm_after_step_3():
    """SIGTERM reaches the second rank alone."""
    from ssl_zoo.callbacks.stop import Stop

    before = Stop.on_train_batch_end

    def on_train_batch_end(self, trainer, *a):
        assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor.__name__ == "<lambda>"
        if trainer.global_step == 3 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        before(self, trainer, *a)

    Stop.on_train_batch_end = on_train_batch_end


@pytest.mark.parametrize(("batch_size", "step"), [(8, 10), (19, 5)])
def test_a_signal_to_one_of_two_ranks_stops_both_and_loses_nothing(tmp_path, batch_size, step):
    """Both stop at the step they agree on, and resume ends as the run that was never stopped. Epochs of 5 steps end at every tenth step,
    after which the epoch is saved first.
    """
    words = [*SMOKE, f"batch_size={batch_size}", "epochs=2", "evaluation.baselines=false", "evaluation.linear.final=false"]
    whole = Ranks(tmp_path, [*words, "run=whole"])
    assert whole.wait() == [0, 0], whole.said(0)
    cut = Ranks(tmp_path, [*words, "run=cut"], spy=(sigterm_after_step_3,))
    assert cut.wait()[0] == 143, cut.said(0)
    assert cut.said(0).count("ssl-zoo resume run=cut") == 1
    assert saved(tmp_path / "cut")["global_step"] == step
    resumed = Ranks(tmp_path, ["resume", "run=cut"])
    assert resumed.wait() == [0, 0], resumed.said(0)
    a, b = (load_file(tmp_path / r / "backbone.safetensors") for r in ("whole", "cut"))
    assert all(torch.equal(v, b[k]) for k, v in a.items())


def wait_with_workers():
    Path("count").write_text(str(len(multiprocessing.active_children())))
    os.replace("count", "workers")
    time.sleep(2)


# ---------------------------------------------------------------------------------------------- ranks that are lost
@pytest.mark.parametrize(("lost", "how"), [(1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGSTOP), (0, signal.SIGKILL)])
def test_who_waits_for_a_lost_rank_names_it_and_ends(tmp_path, lost, how):
    words = [*SHORT, "run=r", "epochs=50", "trainer.timeout_s=4", "checkpoint.every_n_steps=2"]
    before = {"SSL_ZOO_RUN": "another"}  # of a run in the process that started these
    ranks = Ranks(tmp_path, words, spy=(at_step, 3, lost, suicide, how), **before)
    ranks.reach("reached")
    other = 1 - lost
    assert ranks.wait(other, limit=4 + 30) == [1], ranks.said(other)
    (line,) = (line for line in ranks.said(other).splitlines() if line.startswith("ssl-zoo: "))
    assert re.search(rf"Rank {lost}\b.* has not answered for too long \(trainer\.timeout_s=4\)", line)
    assert "ssl-zoo resume run=r" in line


def test_a_rank_whose_data_does_not_come_is_named(tmp_path):
    ranks = Ranks(tmp_path, [*SHORT, "run=r", "epochs=50", "trainer.timeout_s=4"], spy=(data_stops, 1))
    assert ranks.wait(0, limit=60) == [1]
    assert "Rank 1 (on" in ranks.said(0)
    assert "is behind the others" in ranks.said(0)


def data_stops(rank):
    from ssl_zoo.data.loader import Loader

    before = Loader._held

    def held(self, index):
        if self.rank == rank and self.seen:
            time.sleep(1000)
        return before(self, index)

    Loader._held = held


def test_an_error_of_one_rank_is_said_by_it_alone(tmp_path):
    ranks = Ranks(tmp_path, [*SHORT, "run=r", "epochs=50"], spy=(at_step, 3, 1, fail))
    assert ranks.wait(limit=60) == [1, 2], ranks.said(0)
    assert ranks.said(1).strip() == "ssl-zoo: rank 1: The disk of this machine is broken."
    assert not ranks.said(0)


def fail():
    from ssl_zoo.errors import UserError

    raise UserError("The disk of this machine is broken.")


# ---------------------------------------------------------------------------------------------- SLURM
def test_a_job_of_slurm_goes_back_into_the_queue_and_goes_on(tmp_path):
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "scontrol"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    tool.chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "x", "SLURM_NTASKS": 1}
    env |= {"SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NODEID": 0}
    first = Ranks(tmp_path, SHORT, world=1, spy=(at_step, 10, 0, suicide, signal.SIGUSR1), **env)
    assert first.wait() == [75], first.said(0)
    run = tmp_path / "runs" / "simclr_tiny_shapes" / "17"
    assert saved(run)["global_step"] == 11
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    assert "Stopped after step 11; nothing is lost (SIGUSR1). Job 17 is in the queue again" in first.said(0)
    again = Ranks(tmp_path, SHORT, world=1, **env, SLURM_RESTART_COUNT=1)
    assert again.wait() == [0], again.said(0)
    assert json.loads((run / "summary.json").read_text())["steps"] == 16
    other = Ranks(tmp_path, [*SHORT, "seed=1", "epochs=1"], world=1, **env)  # another run of the same job
    assert other.wait() == [0], other.said(0)
    assert (run.with_name("17-1") / "summary.json").is_file()


# ---------------------------------------------------------------------------------------------- the same bits
def test_deterministic_runs_are_equal(tmp_path):
    for name in ("a", "b"):
        run = Ranks(tmp_path, [*SHORT, f"run={name}", "trainer.deterministic=true", "method=byol"], world=1)
        assert run.wait() == [0], run.said(0)
    assert (tmp_path / "a" / "backbone.safetensors").read_bytes() == (tmp_path / "b" / "backbone.safetensors").read_bytes()
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_buffers_that_are_not_broadcast_change_nothing(tmp_path):
    """MoCo with BN of each rank's own: what is judged and saved is that of rank 0, as DDP's broadcasts at each forward would have it."""
    words = [*SHORT, "method=moco", "recipe=none", "method.proj_dim=16", "method.queue_size=64"]
    for name, spy in (("own", None), ("sent", (broadcast,))):
        ranks = Ranks(tmp_path, [*words, f"run={name}"], spy=spy)
        assert ranks.wait() == [0, 0], ranks.said(0)
    a, b = (saved(tmp_path / r)["state_dict"] for r in ("own", "sent"))
    assert any("running_mean" in k for k in a)
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    assert rows(tmp_path / "own") == rows(tmp_path / "sent")


def broadcast():
    from lightning.pytorch.strategies import DDPStrategy

    before = DDPStrategy._setup_model

    def setup(self, model):
        assert self._ddp_kwargs["broadcast_buffers"] is False
        self._ddp_kwargs["broadcast_buffers"] = True
        return before(self, model)

    DDPStrategy._setup_model = setup


# ---------------------------------------------------------------------------------------------- the command itself
def test_a_multirun_of_two_ranks_goes_on_after_a_failed_job(tmp_path):
    words = [w for w in SHORT if not w.startswith(("batch_size", "epochs"))]
    done = command("-m", *words, "batch_size=8,5000,16", "epochs=1", "trainer.devices=2", "out=many", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    runs = sorted((tmp_path / "many" / "simclr_tiny_shapes").iterdir())
    assert [r.name[-2:] for r in runs] == ["_0", "_1", "_2"]
    assert [(r / "summary.json").is_file() for r in runs] == [True, False, True]
    found = [json.loads((runs[i] / "summary.json").read_text()) for i in (0, 2)]
    assert [(f["global_batch"], f["steps"], f["speed"]["devices"]) for f in found] == [(16, 4, 2), (32, 2, 2)]
    lines = done.stdout.splitlines()
    assert lines[-2] == "2 of 3 jobs finished; failed: 2", done.stderr
    assert lines[-1].split() == ["2", "exit", "code", "2", f"many/simclr_tiny_shapes/{runs[1].name}", "batch_size=5000"]
    assert done.stdout.count("kNN top-1") == 2
    assert done.stderr.count("fewer than the global batch") == 1


def test_torchrun_gives_devices_and_one_folder(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SSL_ZOO_CACHE": str(tmp_path / "cache")}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ssl_zoo"]
    done = subprocess.run([*start, *SHORT, "epochs=1"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs" / "simclr_tiny_shapes").iterdir()
    assert json.loads((run / "summary.json").read_text())["global_batch"] == 16
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    assert len(lines) == len(set(lines))
    assert done.stdout.count("kNN top-1") == 1


def test_the_command_names_the_process_that_was_killed(tmp_path):
    (tmp_path / "kill.py").write_text(
        "import os, signal, sys\nfrom ssl_zoo.callbacks.stop import Stop\nfrom ssl_zoo.cli import main\n"
        "def killed(self, trainer, *a):\n"
        "    if trainer.global_step == 3 and trainer.global_rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Stop.on_train_batch_end = killed\nmain(sys.argv[1:])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SSL_ZOO_CACHE": str(tmp_path / "cache")}
    words = [*SHORT, "run=r", "epochs=50", "trainer.devices=2", "checkpoint.every_n_steps=2"]
    done = subprocess.run([sys.executable, "kill.py", *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    sentence = "ssl-zoo: Rank 1 was killed by signal 9, so all ranks end. Continue with: ssl-zoo resume run=r"
    assert done.stderr.strip().splitlines() == [sentence]
