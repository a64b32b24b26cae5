"""Who started the processes, SLURM's jobs, and signals that are passed on; no training."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ssl_zoo.cli import run
from ssl_zoo.config import compose, plain
from ssl_zoo.errors import Ended, UserError
from ssl_zoo.fingerprint import config_hash
from ssl_zoo.launch import begun, prepare, rank, refuse_many
from ssl_zoo.multirun import multirun, wait
from ssl_zoo.saved import save_config
from ssl_zoo.submit import parameters

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NAME": "x",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_STEP_ID": "0",
}


@pytest.fixture
def env(monkeypatch):
    for key in [k for k in os.environ if k.startswith(("SLURM_", "TORCHELASTIC_")) or k in TORCHRUN or k == "CUBLAS_WORKSPACE_CONFIG"]:
        monkeypatch.delenv(key)
    return lambda values: [monkeypatch.setenv(k, v) for k, v in values.items()]


@pytest.mark.parametrize(("start", "devices", "nodes", "mine"), [(TORCHRUN, 2, 2, 3), (SRUN, 4, 2, 5)])
def test_devices_are_those_of_who_started_the_processes(env, start, devices, nodes, mine):
    config = compose("train", [])
    prepare(config, [])
    assert (config.trainer.devices, config.trainer.num_nodes, rank()) == (1, 1, 0)
    env(start)
    prepare(config, [])
    assert (config.trainer.devices, config.trainer.num_nodes, rank()) == (devices, nodes, mine)
    for words in (["trainer.devices=3"], ["trainer.num_nodes=1"], ["trainer.devices=[0]"]):
        with pytest.raises(UserError, match=rf"{re.escape(words[0])}, but .* started {devices} processes on each of {nodes} nodes"):
            prepare(compose("train", words), [words[0].partition("=")[0]])
    prepare(compose("train", ["trainer.devices=auto"]), ["trainer.devices"])
    for verb in (["-m", "seed=0,1"], ["benchmark", "suite=shapes"]):
        with pytest.raises(UserError, match=f"start it once, with trainer.devices={devices}"):
            run(verb)


def test_a_job_of_many_tasks_needs_srun(env):
    env({k: v for k, v in SRUN.items() if k != "SLURM_STEP_ID"})
    with pytest.raises(UserError, match="asked for 8 tasks, but this is one process: start it with srun"):
        prepare(compose("train", []), [])
    env({"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0"})
    prepare(compose("train", []), [])


def test_an_interactive_shell_of_slurm_starts_its_own_processes(env):
    env({**SRUN, "SLURM_JOB_NAME": "bash"})
    config = compose("train", ["trainer.devices=2"])
    prepare(config, ["trainer.devices"])
    assert (config.trainer.devices, rank()) == (2, 0)
    refuse_many("-m")


def test_deterministic_sets_what_cuda_reads_first(env):
    prepare(compose("train", []), [])
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    prepare(compose("train", ["trainer.deterministic=true"]), [])
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_when_to_stop_and_how_long_to_wait_decide_nothing():
    hashes = {config_hash(plain(compose("train", words))) for words in ([], ["preemption.deadline_s=0"], ["trainer.timeout_s=5"])}
    assert len(hashes) == 1


def test_what_splits_parameters_is_refused():
    with pytest.raises(UserError, match="need whole"):
        compose("train", ["trainer.strategy=fsdp"])


# ---------------------------------------------------------------------------------------------- jobs of SLURM
def test_a_job_finds_the_run_that_it_began(env, tmp_path):
    def find(*words):
        config = compose("train", [f"out={tmp_path}", *words])
        return begun(config, "n"), config.run

    assert find() == (None, None)
    env({"SLURM_JOB_ID": "17"})
    assert find("run=mine") == (None, "mine")
    first = tmp_path / "n" / "17"
    assert find() == (None, str(first))
    (first / "checkpoints").mkdir(parents=True)
    save_config(compose("train", [f"out={tmp_path}"]), first, ["ssl-zoo"])
    assert find("seed=1") == (None, f"{first}-1")  # another run of the same job
    assert (first / "config.yaml").exists()
    assert find() == (None, str(first))  # which ended before its first checkpoint
    assert not (first / "config.yaml").exists()
    save_config(compose("train", [f"out={tmp_path}"]), first, ["ssl-zoo"])
    (first / "checkpoints" / "last.ckpt").touch()
    assert find() == (first, None)
    (first / "summary.json").touch()  # finished
    assert find() == (None, f"{first}-1")
    env({"SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "2"})
    assert find() == (None, str(first.with_name("15_2")))


def test_a_sweep_that_slurm_starts_again_goes_on(env, tmp_path, monkeypatch, capsys):
    env({"SLURM_JOB_ID": "17"})
    runs = tmp_path / "simclr_tiny_shapes"
    for n in (0, 1):
        (runs / f"17_{n}" / "checkpoints").mkdir(parents=True)
    (runs / "17_0" / "summary.json").touch()
    (runs / "17_1" / "checkpoints" / "last.ckpt").touch()
    started = []
    monkeypatch.setattr("ssl_zoo.multirun._start", lambda *words: started.append(words) or 0)
    assert multirun(["seed=0,1,2", f"out={tmp_path}"], {}) == 0
    assert started == [("resume", f"run={runs}/17_1"), ("pretrain", "seed=2", f"out={tmp_path}", f"run={runs}/17_2")]
    assert "3 of 3 jobs finished" in capsys.readouterr().out


SBATCH = """#!/bin/sh
n=$(cat {0}/count 2>/dev/null || echo 40); echo $((n + 1)) > {0}/count
cp "$1" {0}/script$((n + 1)); echo "Submitted batch job $((n + 1))"
"""


def test_every_job_of_a_sweep_is_submitted(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    for name, text in (("sbatch", SBATCH.format(tmp_path)), ("srun", "#!/bin/sh\n"), ("scontrol", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    words = [
        "sweep=slurm",
        "sweep.partition=gpu",
        "sweep.more.nice=7",
        "seed=0,1",
        "trainer.devices=4",
        "trainer.num_nodes=2",
        f"out={tmp_path}/r",
    ]
    assert run(["-m", *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in said] == ["job 41", "job 42"]
    script = (tmp_path / "script42").read_text()
    for flag in (
        "partition=gpu",
        "nodes=2",
        "ntasks-per-node=4",
        "gpus-per-node=4",
        "cpus-per-task=8",
        "time=1440",
        "signal=USR1@90",
        "nice=7",
    ):
        assert f"#SBATCH --{flag}\n" in script, flag
    assert "#SBATCH --requeue" in script
    with pytest.raises(UserError, match="use out="):
        run(["-m", "sweep=slurm", "run=a"])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="login node"):
        run(["-m", *words])
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'ssl-zoo\[slurm\]'"):
        run(["-m", *words])


@pytest.mark.parametrize("word", ["sweep=slurmm", "sweep.timeout_min=0", "sweep.partion=a"])
def test_a_slip_in_a_sweep_is_told(word):
    words = [word] if word.startswith("sweep=") else ["sweep=slurm", word]
    with pytest.raises(UserError, match=r"did you mean|takes"):
        run(["-m", *words, "seed=0,1"])
    with pytest.raises(UserError, match="add -m"):
        run(words)


def test_a_sweep_has_one_place(capsys):
    for words, said in (
        (["sweep=slurm", "sweep.signal_s=60,90"], "all jobs of -m run in one place"),
        (["sweep=slurm,local"], "all jobs of -m run in one place"),
        (["sweep.partition=gpu"], "add sweep=slurm"),
        (["++sweep.partition=gpu"], "add sweep=slurm"),
        (["sweep=nonsense", "--cfg", "job"], "nonsense"),
    ):
        with pytest.raises(UserError, match=said):
            run(["-m", "seed=0,1", *words])
    with pytest.raises(UserError, match="add -m"):
        run(["++sweep.partition=gpu"])
    settings = compose("sweep", ["sweep=slurm", "sweep.more=null"]).sweep
    assert parameters(settings, 1, 1)["slurm_additional_parameters"]["requeue"]


# ---------------------------------------------------------------------------------------------- jobs one after the other
def _job(code):
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


def test_a_signal_is_passed_on_to_the_job():
    code = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *a: sys.exit(143))\nprint('there', flush=True)\ntime.sleep(60)"
    job = _job(code)
    assert job.stdout.readline()
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    started = time.monotonic()
    assert wait(job) == -143
    assert time.monotonic() - started < 50  # it was not waited for to its own end
    assert signal.getsignal(signal.SIGTERM) == before
    assert [wait(_job(f"raise SystemExit({c})")) for c in (0, 1, 130)] == [0, 1, -130]
    assert wait(_job("import os; os.kill(os.getpid(), 9)")) == 137


def test_a_stopped_job_ends_a_sweep_and_a_failed_one_does_not(tmp_path, monkeypatch, capsys):
    codes = iter([2, 0, -143])
    monkeypatch.setattr("ssl_zoo.multirun._start", lambda *words: next(codes))
    with pytest.raises(Ended, match="Stopped in job 3 of 4") as e:
        multirun(["seed=0,1,2,3", "epochs=1", f"out={tmp_path}"], {})
    assert e.value.code == 143
    monkeypatch.setattr("ssl_zoo.multirun._start", lambda *words: 3 if "seed=1" in words else 0)
    assert multirun(["seed=0,1,2", "epochs=1", f"out={tmp_path}"], {}) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "exit code" in line)
    assert re.fullmatch(rf"    2  exit code 3    {re.escape(str(tmp_path))}/simclr_tiny_shapes/[\d-]+_1  seed=1", line)
    assert not Path(tmp_path / "simclr_tiny_shapes").exists()
