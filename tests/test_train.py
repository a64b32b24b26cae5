"""Whole runs through the command."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SMOKE, command, picture, write
from safetensors.torch import load_file

from ssl_zoo.build import build_data, build_method
from ssl_zoo.callbacks.stop import Stop
from ssl_zoo.compiled import compile_backbones, uncompiled
from ssl_zoo.config import compose


def rows(run):
    """metrics.csv as a list of dicts."""
    with open(run / "metrics.csv", newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    done = command(*SMOKE, "run=mine", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "mine", done


def test_a_run_leaves_everything(finished):
    run, done = finished
    for name in ("config.yaml", "metrics.csv", "summary.json", "checkpoints/last.ckpt", "backbone.safetensors", "report.html",
                 "figures/curves.png", "figures/health.png", "figures/map.png", "figures/neighbours.png", "figures/views.png",
                 "figures/patches.png"):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    assert not list(run.rglob("*.part"))
    lines = done.stdout.strip().splitlines()
    assert [line[:14].strip() for line in lines[-6:]] == ["kNN top-1", "linear probe", "health", "time", "weights", "report"]
    assert not done.stderr.strip()


def test_the_summary_holds_the_numbers(finished):
    run, _ = finished
    s = json.loads((run / "summary.json").read_text())
    assert {"untrained", "raw_pixels"} == set(s["baselines"])
    for value in (s["final"]["knn_top1"], s["final"]["linear_top1"], s["baselines"]["raw_pixels"]["knn_top1"], s["best"]["knn_top1"]):
        assert 0 <= value <= 100
    assert (s["epochs"], s["steps"], s["global_batch"], s["seed"]) == (2, 12, 32, 0)
    assert s["stem"] == "3x3 stride 2, no max-pool"
    assert s["versions"]["torch"] == torch.__version__.split("+")[0]
    assert s["speed"]["images_per_s"] > 0
    assert s["verdict"]
    assert s["command"].startswith("ssl-zoo experiment=smoke")


def test_metrics_have_split_and_unit(finished):
    run, _ = finished
    found = rows(run)
    assert {"step", "epoch", "train/loss", "train/lr", "eval/knn_top1", "eval/online_linear_top1", "health/effective_rank",
            "health/feature_std", "health/alignment", "health/uniformity", "speed/images_per_s",
            "speed/data_wait"} == set(found[0])  # fmt: skip
    steps = [int(r["step"]) for r in found]
    assert steps == sorted(set(steps))
    assert [r["step"] for r in found if r["eval/knn_top1"]] == ["5", "12"]


def test_the_checkpoint_is_plain(finished):
    run, _ = finished
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 12
    weights = load_file(run / "backbone.safetensors")
    assert all(torch.equal(weights[k.removeprefix("backbone.")], v) for k, v in state["state_dict"].items() if k.startswith("backbone."))


def test_the_report_stands_alone(finished):
    run, _ = finished
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert all(place.startswith("data:") for place in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page))
    assert "<script" not in page
    for word in ("raw pixels", "untrained", "Healthy", "ssl-zoo experiment=smoke"):
        assert word in page
    before = (run / "report.html").stat().st_mtime_ns
    done = command("report", "run=mine", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").stat().st_mtime_ns > before


def test_eval_gives_the_numbers_of_the_summary(finished):
    """Under the settings of the run. A setting that is not the usual one gives a file of its own."""
    run, _ = finished
    summary = json.loads((run / "summary.json").read_text())
    for name, words, own in (("knn", [], "knn"), ("linear", ["protocol.max_iter=5", "protocol.l2=[0.01]"], "linear-??????")):
        done = command("eval", "run=mine", f"protocol={name}", *words, "device=cpu", cwd=run.parent)
        assert done.returncode == 0, done.stderr
        (file,) = (run / "eval").glob(f"{own}.json")
        found = json.loads(file.read_text())
        assert found["top1"] == pytest.approx(summary["final"][f"{name}_top1"], abs=0.01)
        assert found["epochs"] == summary["epochs"]
        assert f"mine/eval/{file.name}" in done.stdout
        assert f"<td>{name}</td>" in (run / "report.html").read_text()


@pytest.mark.slow
def test_one_backbone_is_judged_on_other_data_and_from_a_file(finished, tmp_path):
    run = Path(shutil.copytree(finished[0], tmp_path / "longer"))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("\nepochs: 2\n", "\nepochs: 30\n"))  # as of a run that goes on
    for name, colours in (("warm", ((200, 60, 20), (150, 140, 0))), ("cold", ((0, 60, 200), (0, 160, 120)))):
        for split, count in (("train", 12), ("test", 4)):
            for c, colour in enumerate(colours):
                for i in range(count):
                    write(tmp_path / name, f"{split}/{c}/{i}.png", picture(colour=tuple(v + i for v in colour), size=(48, 40)))
    done = command("eval", f"run={run}", f"transfer=[{tmp_path}/warm,{tmp_path}/cold]", "protocol.k=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in table[1:3]] == ["warm", "cold"]
    found = [json.loads(next((run / "eval").glob(f"knn-{name}-*.json")).read_text()) for name in ("warm", "cold")]
    assert [f["top1"] for f in found] == [100.0, 100.0]
    assert found[0]["classes"] == ["0", "1"]
    assert found[0]["epochs"] == 2  # those of the weights
    assert found[0]["features"]["image_size"] == 32  # what the run was trained with, not the folder's own 40
    words = ["dataset=folder", f"dataset.path={tmp_path}/warm", "protocol.k=3", "out=results"]
    done = command("eval", f"weights={run}/backbone.safetensors", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "results" / "eval" / next((tmp_path / "results" / "eval").iterdir()).name).read_text())
    page = (tmp_path / "results" / "report.html").read_text()
    assert "<td>knn</td>" in page
    assert {"map", "neighbours", "patches", "confusion"} <= set(re.findall(r'<img alt="(\w+)"', page))
    same_name = shutil.copytree(tmp_path / "warm", tmp_path / "elsewhere" / "warm")
    assert command("eval", f"weights={run}/backbone.safetensors", *words, f"dataset.path={same_name}", cwd=tmp_path).returncode == 0
    assert len(list((tmp_path / "results" / "eval").iterdir())) == 2
    assert again["weights"] == found[0]["weights"]
    assert again["top1"] == 100.0
    last = f"{run}/checkpoints/last.ckpt"
    done = command("eval", f"run={run}", "net=student", "protocol=health", f"protocol.compare=[{run},{last}]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    health = json.loads(next((run / "eval").glob("health-student-*.json")).read_text())
    assert health["cka"]["matrix"][0][1:] == pytest.approx([1.0, 1.0])
    assert health["epochs"] == 2
    words = [f"weights={last}", "backbone=tiny", "dataset=shapes", "dataset.test_size=64", "dataset.train_size=64"]
    done = command("eval", *words, "protocol=health", f"protocol.compare=[{run}]", "out=checkpoint", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    health = json.loads(next((tmp_path / "checkpoint" / "eval").glob("health-*.json")).read_text())
    assert health["cka"]["matrix"][0][1] == pytest.approx(1.0)  # normalised as in the run
    refused = command("eval", f"run={run}", "net=teacher", cwd=tmp_path)
    assert refused.returncode == 2
    assert "no teacher" in refused.stderr
    refused = command("eval", f"weights={run}/backbone.safetensors", "net=teacher", "dataset=shapes", cwd=tmp_path)
    assert refused.returncode == 2
    assert "hold one network" in refused.stderr


def test_a_run_is_never_written_over(finished):
    run, _ = finished
    done = command(*SMOKE, "run=mine", cwd=run.parent)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr


def test_the_same_seed_gives_the_same_weights(finished, cli, tmp_path):
    run, _ = finished
    assert cli(*SMOKE, "run=again").returncode == 0
    a, b = load_file(run / "backbone.safetensors"), load_file(tmp_path / "again" / "backbone.safetensors")
    assert all(torch.equal(v, b[k]) for k, v in a.items())


def test_preview(cli, tmp_path):
    done = cli(
        "preview", "dataset.train_size=20", "dataset.test_size=5", "images=3", "draws=2", "augment.local_crops=2", "file=out/grid.png"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "out/grid.png"
    assert (tmp_path / "out" / "grid.png").read_bytes()[:4] == b"\x89PNG"


def interrupt_at_step_9():
    before = Stop.on_train_batch_end

    def on_train_batch_end(self, trainer, *a):
        if trainer.global_step == 9:
            os.kill(os.getpid(), signal.SIGINT)
        before(self, trainer, *a)

    Stop.on_train_batch_end = on_train_batch_end


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_end(cli, tmp_path):
    """Ctrl-C in the middle of an epoch, then resume: weights equal those of the run that was never stopped."""
    words = [*SMOKE, "epochs=4", "evaluation.baselines=false", "evaluation.linear.final=false"]
    assert cli(*words, "run=whole").returncode == 0
    cut = cli(*words, "run=cut", before=interrupt_at_step_9)
    assert cut.returncode == 130, cut.stderr
    assert "ssl-zoo resume run=cut" in cut.stderr
    assert torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 9
    done = cli("resume", "run=cut")
    assert done.returncode == 0, done.stderr
    a, b = (load_file(tmp_path / r / "backbone.safetensors") for r in ("whole", "cut"))
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    losses = [[(r["step"], r["train/loss"]) for r in rows(tmp_path / r) if r["train/loss"]] for r in ("whole", "cut")]
    assert losses[0] == losses[1]
    seconds = json.loads((tmp_path / "cut" / "summary.json").read_text())["seconds"]
    assert seconds["training"] < seconds["total"]


@pytest.mark.slow
def test_a_finished_run_can_go_on_for_more_epochs(cli, tmp_path):
    run = tmp_path / "a"
    assert cli(*SMOKE, "run=a", "epochs=1").returncode == 0
    before = (run / "config.yaml").read_text(), (run / "summary.json").read_text()
    for words in (["run=a"], ["run=a", "epochs=1"], ["run=a", "batch_size=8"]):
        refused = cli("resume", *words)
        assert refused.returncode == 2, refused.stdout
        assert refused.stderr.count("\n") == 1
    (run / "checkpoints" / "last.ckpt").rename(run / "kept")
    (run / "checkpoints" / "last.ckpt").write_bytes((run / "kept").read_bytes()[:5000])
    damaged = cli("resume", "run=a", "epochs=2")
    assert damaged.returncode == 2
    assert "last.ckpt cannot be read" in damaged.stderr
    assert ((run / "config.yaml").read_text(), (run / "summary.json").read_text()) == before
    (run / "kept").rename(run / "checkpoints" / "last.ckpt")
    done = cli("resume", "run=a", "epochs=2")
    assert done.returncode == 0, done.stderr
    s = json.loads((run / "summary.json").read_text())
    assert s["steps"] == 12
    assert s["command"].splitlines()[1] == "ssl-zoo resume run=a epochs=2"
    # trained to its end, but stopped before it was judged
    (run / "summary.json").unlink()
    (run / "backbone.safetensors").rename(run / "before.safetensors")
    assert cli("resume", "run=a").returncode == 0
    again = json.loads((run / "summary.json").read_text())
    assert again["final"]["knn_top1"] == s["final"]["knn_top1"]
    assert again["speed"]["images_per_s"] == s["speed"]["images_per_s"] > 0  # of all epochs, also those before this start
    a, b = load_file(run / "before.safetensors"), load_file(run / "backbone.safetensors")
    assert all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.slow
def test_ctrl_c_ends_a_multirun_when_its_job_has_saved(tmp_path):
    words = [*SMOKE, "epochs=500", "seed=0,1", "out=many", "evaluation.baselines=false"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SSL_ZOO_CACHE": str(tmp_path / "cache")}
    run = subprocess.Popen([sys.executable, "-m", "ssl_zoo", "-m", *words], cwd=tmp_path, env=env, text=True, stderr=subprocess.PIPE,
                           stdout=subprocess.PIPE, start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the command and to its job
    out, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert "nothing is lost" in err
    assert "Stopped in job 1 of 2" in err
    assert "[2/2]" not in out


@pytest.mark.slow
def test_multirun_goes_on_after_a_failed_job(cli, tmp_path):
    done = cli("-m", *SMOKE, "batch_size=32,5000", "seed=0,1", "epochs=1", "out=many")
    assert done.returncode == 1
    assert "2 of 4 jobs finished; failed: 3, 4" in done.stdout
    assert len(list((tmp_path / "many").rglob("summary.json"))) == 2
    assert "fewer than the global batch of 5000" in done.stderr


SPY = """
import sys, torch
from ssl_zoo.cli import main
from ssl_zoo.methods.base import Method

seen = {"index": []}
before = Method.on_after_batch_transfer

def look(self, batch, i):
    seen["index"].append(batch["index"])
    image = torch.arange(3072, dtype=torch.uint8).view(1, 3, 32, 32)
    seen.setdefault("same", before(self, {"image": image.repeat(4, 1, 1, 1)}, i)["views"][0])
    return before(self, batch, i)

def end(self):
    torch.save({**seen, "weights": self.state_dict()}, f"rank{self.global_rank}.pt")

Method.on_after_batch_transfer, Method.on_train_end = look, end
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_two_processes_train_as_one(cli, tmp_path):
    """DDP over gloo: one run folder, the learning rate of the global batch, different crops of different images, equal weights."""
    words = [*SMOKE, "trainer.devices=2", "trainer.strategy=ddp", "batch_size=16", "run=two", "epochs=1", "trainer.log_every_n_steps=1"]
    (tmp_path / "spy.py").write_text(SPY)  # DDP starts the same script again for rank 1
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SSL_ZOO_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "spy.py", *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kNN top-1") == 1
    (a, b) = (torch.load(tmp_path / f"rank{r}.pt") for r in (0, 1))
    assert len(a["index"]) == len(b["index"]) == 6
    seen = torch.cat([*a["index"], *b["index"]])
    assert len(seen.unique()) == len(seen) == 192
    assert not torch.equal(a["same"], b["same"])  # the same image, augmented by each rank in the same step
    assert a["weights"].keys() == b["weights"].keys()
    assert all(torch.equal(v, b["weights"][k]) for k, v in a["weights"].items())
    s = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert (s["global_batch"], s["steps"], s["speed"]["devices"]) == (32, 6, 2)
    lr = max(float(r["train/lr"]) for r in rows(tmp_path / "two") if r["train/lr"])
    assert cli(*SMOKE, "batch_size=32", "run=one", "epochs=1", "trainer.log_every_n_steps=1").returncode == 0
    assert lr == pytest.approx(max(float(r["train/lr"]) for r in rows(tmp_path / "one") if r["train/lr"]))


@pytest.mark.slow
def test_names_of_any_kind_and_true_half_precision(cli, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("$a_$", "$5_to_$10", os.fsdecode(b"cl\xff")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(16):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / name / os.fsdecode(b"bad\xff.png")).write_bytes(b"no")
    done = cli("method=byol", "dataset=folder", "dataset.path=photos", "recipe=none", "batch_size=8", "epochs=1", "method.hidden_dim=32",
               "trainer.precision=bf16-true", "run=r", "evaluation.linear.final=false")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bad\\udcff.png" in (tmp_path / "r" / "report.html").read_text()
    assert {v.dtype for v in load_file(tmp_path / "r" / "backbone.safetensors").values()} == {torch.bfloat16, torch.int64}


def ask_after_two_batches():
    before = Stop.on_train_batch_end

    def on_train_batch_end(self, trainer, *a):
        self.asked |= trainer.fit_loop.total_batch_idx == 1
        before(self, trainer, *a)

    Stop.on_train_batch_end = on_train_batch_end


@pytest.mark.slow
def test_an_interrupted_accumulation_loses_nothing(cli, tmp_path):
    """Ctrl-C between two micro-batches of one step; BYOL's teacher must have moved before the checkpoint, and MoCo's must yet."""
    for method in ("byol", "moco"):
        words = [*SMOKE, f"method={method}", "recipe=none", "method.proj_dim=16", "method.momentum=0.9", "evaluation.baselines=false",
                 "trainer.accumulate_grad_batches=3", "evaluation.linear.final=false"]  # fmt: skip
        words += ["method.queue_size=100"] if method == "moco" else []
        assert cli(*words, f"run={method}1").returncode == 0
        cut = cli(*words, f"run={method}2", before=ask_after_two_batches)
        assert cut.returncode == 130, cut.stderr
        assert "Stopped after step 1;" in cut.stderr
        assert cli("resume", f"run={method}2").returncode == 0
        states = [torch.load(tmp_path / f"{method}{n}" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for n in (1, 2)]
        assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
        assert any(r["train/loss"] for r in rows(tmp_path / f"{method}1"))


@pytest.mark.slow
def test_an_unlabelled_folder_trains(cli, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.jpg")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no")
    done = cli("dataset=folder", "dataset.path=photos", "backbone=tiny", "batch_size=16", "epochs=1", "method.hidden_dim=32", "run=r")
    assert done.returncode == 0, done.stderr
    assert "skipped: the images have no labels" in done.stdout
    s = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert s["best"] is None
    assert len(s["data"]["skipped"]) == 1
    assert "no labels" in (tmp_path / "r" / "report.html").read_text()
    refused = cli("eval", "run=r")
    assert refused.returncode == 2
    assert "needs labels" in refused.stderr


def test_teachers_are_compiled_too_and_a_failure_is_told():
    config = compose("train", ["method=byol", "backbone=tiny", "dataset=shapes", "dataset.train_size=8", "dataset.test_size=8"])
    method = build_method(config, build_data(config))
    compile_backbones(method)
    assert method.backbone._compiled_call_impl
    assert method.teacher.network[0]._compiled_call_impl
    method.backbone.compile(backend=lambda *_: 1 / 0)
    with pytest.raises(RuntimeError) as failure:
        method.backbone(torch.zeros(2, 3, 32, 32))
    told = str(uncompiled(failure.value))
    assert told.startswith("The backbone cannot be compiled on this machine: ")
    assert told.endswith("; trainer.compile=false trains without.")
    assert "\n" not in told
    assert uncompiled(RuntimeError("of another kind")) is None
