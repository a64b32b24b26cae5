"""Checkpoints on disks that fail, damaged ones, and which run resume=auto goes on with."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ssl_zoo.callbacks.checkpoint import WholeFiles
from ssl_zoo.callbacks.csv_log import CSVLog
from ssl_zoo.callbacks.loggers import sync_command, wandb_id
from ssl_zoo.callbacks.place import Place
from ssl_zoo.checks import check_metric
from ssl_zoo.commands import do_pretrain
from ssl_zoo.config import compose, plain
from ssl_zoo.continued import changed, run_to_continue
from ssl_zoo.errors import UserError
from ssl_zoo.files import whole
from ssl_zoo.fingerprint import config_hash
from ssl_zoo.run_folder import claim, readable_checkpoint
from ssl_zoo.saved import load_run, save_config


def checkpoint(step, size=1000):
    whole = {"global_step": step, "state_dict": {"w": torch.full((size,), float(step))}, "callbacks": {"Place": {"seen": step}}}
    return whole | {"loops": {}, "optimizer_states": []}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return tmp_path / "run"


def save(run, *steps, size=1000):
    files = WholeFiles(run)
    for step in steps:
        files.save_checkpoint(checkpoint(step, size), run / "checkpoints" / "last.ckpt")


def names(run):
    return sorted(f.name for f in (run / "checkpoints").iterdir())


# ---------------------------------------------------------------------------------------------- written whole
def test_the_checkpoint_before_stays(run):
    save(run, 1, 2, 3)
    assert names(run) == ["last.ckpt", "previous.ckpt"]
    found = [torch.load(run / "checkpoints" / f"{n}.ckpt", weights_only=True)["global_step"] for n in ("last", "previous")]
    assert found == [3, 2]


def test_at_every_instant_a_whole_checkpoint_is_there(run, monkeypatch):
    """Cut at each call that changes names: last.ckpt can be read, or the one before it."""
    save(run, 1, 2)
    calls, stop_at = [], [0]

    class Cut(BaseException):
        pass

    def cutting(real):
        def call(*args, **kwargs):
            calls.append(real.__name__)
            if len(calls) == stop_at[0]:
                raise Cut
            return real(*args, **kwargs)

        return call

    for name in ("link", "replace", "fsync"):
        monkeypatch.setattr(os, name, cutting(getattr(os, name)))
    for linking in (True, False):
        if not linking:
            monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(PermissionError(1, "no links on this disk")))
        for stop in range(1, 5):
            calls.clear()
            stop_at[0] = stop
            with pytest.raises(Cut):
                save(run, 3)
            assert readable_checkpoint(run)[1]["global_step"] >= 1
            stop_at[0] = 0
            save(run, 1, 2)


SMALL = 20_000  # numbers, 80 kB


@pytest.fixture
def small(tmp_path):
    """A disk of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing(small):
    run = small / "run"
    (run / "checkpoints").mkdir(parents=True)
    save(run, 1, 2, size=SMALL)
    for size in (12 * SMALL, 100 * SMALL, 1000 * SMALL):  # fails within the file, in torch's buffer, and at once
        with pytest.raises(UserError) as told:
            save(run, 3, size=size)
        assert str(told.value).startswith(f"{run}/checkpoints/last.ckpt cannot be written (No space left on device): free space there")
        assert str(told.value).endswith(f"ssl-zoo resume run={run}")
        assert names(run) == ["last.ckpt", "previous.ckpt"]
        assert readable_checkpoint(run)[1]["global_step"] == 2
    save(run, 3, size=SMALL)
    assert readable_checkpoint(run)[1]["global_step"] == 3


def test_a_read_only_disk_loses_nothing(small):
    run = small / "run"
    (run / "checkpoints").mkdir(parents=True)
    save(run, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with pytest.raises(UserError, match=r"last.ckpt cannot be written \(Read-only file system\)"):
        save(run, 2)
    assert readable_checkpoint(run)[1]["global_step"] == 1


def test_a_folder_without_permission_loses_nothing():
    folder = Path(tempfile.mkdtemp())
    try:
        run = folder / "run"
        (run / "checkpoints").mkdir(parents=True)
        with pytest.raises(UserError, match="start the run again"), _forbidden(folder, run):
            save(run, 1)
        save(run, 1)
        with (
            pytest.raises(UserError, match=r"checkpoints/last.ckpt cannot be written \(Permission denied\).*ssl-zoo resume"),
            _forbidden(folder, run),
        ):
            save(run, 2)
        assert names(run) == ["last.ckpt"]
    finally:
        shutil.rmtree(folder)


class _forbidden:
    """Within it, `run` cannot be written; root is nobody for that time."""

    def __init__(self, folder, run):
        self.folder, self.run, self.root = folder, run, os.geteuid() == 0

    def __enter__(self):
        for f in (self.folder, self.run):
            f.chmod(0o755)
        (self.run / "checkpoints").chmod(0o555)
        if self.root:
            os.seteuid(65534)

    def __exit__(self, *_):
        if self.root:
            os.seteuid(0)
        (self.run / "checkpoints").chmod(0o755)


def test_other_errors_stay_what_they_are(run):
    with pytest.raises(UserError, match="more than plain values and tensors"):
        WholeFiles(run).save_checkpoint({**checkpoint(1), "odd": Path("odd")}, run / "checkpoints" / "last.ckpt")
    with pytest.raises(TypeError), whole(run / "file") as f:
        f.write("text")
    assert list(run.glob("file*")) == []


# ---------------------------------------------------------------------------------------------- read back
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, capsys):
    save(run, 1, 2, size=SMALL)
    last = run / "checkpoints" / "last.ckpt"
    whole_file = last.read_bytes()
    middle = len(whole_file) // 2
    flipped = whole_file[:middle] + bytes([whole_file[middle] ^ 1]) + whole_file[middle + 1 :]
    for damaged in (whole_file[:-100], whole_file[:middle], b"", flipped, None):
        last.unlink() if damaged is None else last.write_bytes(damaged)
        file, found = readable_checkpoint(run)
        assert (file.name, found["global_step"]) == ("previous.ckpt", 1)
        assert capsys.readouterr().out.count("\n") == 1
        last.write_bytes(whole_file)
    assert readable_checkpoint(run)[1]["global_step"] == 2
    for name in names(run):
        (run / "checkpoints" / name).write_bytes(whole_file[:middle])
    with pytest.raises(UserError, match=r"last.ckpt cannot be read .*: restore it from a copy or start a new run"):
        readable_checkpoint(run)


@pytest.mark.parametrize(
    "wrong", [{"callbacks": None}, {"loops": None}, {"global_step": "x"}, {"callbacks": {"Place": {"batch": 3, "accumulate": "x"}}}]
)
def test_what_is_no_checkpoint_of_a_run_gives_way_too(run, wrong, capsys):
    save(run, 1, 2)
    found = {k: v for k, v in {**checkpoint(3), **wrong}.items() if v is not None}
    torch.save(found, run / "checkpoints" / "last.ckpt")
    assert readable_checkpoint(run)[1]["global_step"] == 1
    assert "it is no checkpoint of a run" in capsys.readouterr().out


def test_a_damaged_checkpoint_does_not_push_out_the_good_one(run):
    save(run, 1, 2)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
    files = WholeFiles(run)
    files.replace = True
    files.save_checkpoint(checkpoint(2), run / "checkpoints" / "last.ckpt")
    assert torch.load(run / "checkpoints" / "previous.ckpt")["global_step"] == 1
    files.save_checkpoint(checkpoint(3), run / "checkpoints" / "last.ckpt")
    assert torch.load(run / "checkpoints" / "previous.ckpt")["global_step"] == 2


def test_two_processes_do_not_train_into_one_folder(run):
    told, tell = os.pipe()
    other = os.fork()
    if not other:
        claim(run)
        os.write(tell, b"x")
        signal.pause()
    os.read(told, 1)
    with pytest.raises(UserError, match="is being trained by another process"):
        claim(run)
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    claim(run)


# ---------------------------------------------------------------------------------------------- metrics.csv
def logged(folder, steps, start=None, **more):
    log = CSVLog(folder)
    log.start = start
    for step in steps:
        log.log_metrics({"epoch": 0, "train/loss": 0.1 * step, **more}, step)
    return (folder / "metrics.csv").read_text().splitlines()


def test_rows_are_neither_lost_nor_doubled(tmp_path):
    undisturbed = logged(tmp_path, range(8))
    assert logged(tmp_path, range(5, 8), start=5) == undisturbed  # killed after step 7, from the checkpoint of step 5
    with open(tmp_path / "metrics.csv", "a") as f:
        f.write("1")  # the row of step 10, cut off on a full disk
    assert logged(tmp_path, range(8, 10), start=8) == [*undisturbed, *(f"{s},0,{0.1 * s}" for s in (8, 9))]
    assert logged(tmp_path, [0], start=0) == undisturbed[:2]
    logged(tmp_path, [4], start=4, final=1.0)  # the end of a run that goes on
    assert logged(tmp_path, [6], start=4) == ["step,epoch,train/loss,final", "0,0,0.0,", "4,0,0.4,1.0", f"6,0,{0.1 * 6},"]


# ---------------------------------------------------------------------------------------------- resume=auto and what a resume changes
def begun(folder, *words, steps=None, done=False, name="simclr_tiny_shapes"):
    run = folder / "runs" / name / str(len(list((folder / "runs" / name).glob("*"))))
    (run / "checkpoints").mkdir(parents=True)
    config = compose("train", list(words))
    save_config(config, run, ["ssl-zoo"])
    if steps:
        save(run, steps)
    if done:
        (run / "summary.json").write_text(f'{{"config_hash": "{config_hash(plain(config))}", "epochs": {config.epochs}}}')
    return run


def test_auto_takes_the_newest_unfinished_run_of_the_same_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["resume=auto", f"out={tmp_path}/runs"]

    def found(*more):
        return run_to_continue(compose("train", [*words, *more]), "simclr_tiny_shapes")

    assert found() == (None, False)
    begun(tmp_path)  # ended before its first checkpoint
    begun(tmp_path, "method.temperature=0.3", steps=3)
    assert found() == (None, False)
    finished = begun(tmp_path, steps=9, done=True)
    assert found() == (finished, True)
    older, newer = begun(tmp_path, steps=3), begun(tmp_path, "data.workers=1", "checkpoint.keep=3", steps=3)
    os.utime(older / "checkpoints" / "last.ckpt", (1, 1))
    broken = begun(tmp_path, steps=3)
    (broken / "config.yaml").write_text("a: [")
    assert found("logger=tensorboard") == (newer, False)
    (newer / "checkpoints" / "last.ckpt").rename(newer / "checkpoints" / "previous.ckpt")
    assert found() == (newer, False)
    assert found(f"run={older}") == (older, False)
    assert found("seed=1") == (None, False)
    with pytest.raises(UserError, match=r"another config \(method.temperature: 0.2 -> 0.9\)"):
        found(f"run={older}", "method.temperature=0.9")
    assert do_pretrain([*words, f"run={finished}"], {})["epochs"] == 50
    assert "has finished its" in capsys.readouterr().out


def test_what_a_resume_changes_is_listed_or_refused(tmp_path):
    run = begun(tmp_path, "batch_size=64", "trainer.devices=2", "trainer.max_steps=5", steps=3)
    config = load_run(run, ["epochs=7", "batch_size=32", "trainer.devices=[0,1,2,3]", "data.workers=auto"])
    assert list(changed(run, config)) == ["batch_size: 64 -> 32", "epochs: 50 -> 7", "trainer.devices: 2 -> [0, 1, 2, 3]"]
    for words in (["batch_size=32"], ["trainer.devices=1"], ["trainer.devices=1", "trainer.accumulate_grad_batches=3"]):
        with pytest.raises(UserError, match="resume cannot change the 128 images per step to "):
            load_run(run, words)
    with pytest.raises(UserError, match=r"resume cannot change method.temperature"):
        load_run(run, ["method.temperature=1.0"])
    for word, said in (
        ("trainer=cpu", "takes single keys, not the group trainer"),
        ("resume=auto", "belongs to a command that trains"),
        ("logger=tensorbord", "did you mean 'tensorboard'"),
    ):
        with pytest.raises(UserError, match=said):
            load_run(run, [word])
    assert load_run(run, ["logger=wandb", "logger.project=p"]).logger == {"name": "wandb", "project": "p", "offline": "auto"}
    assert load_run(run, ["logger.name=wandb"]).logger.offline == "auto"
    photos = begun(tmp_path, "dataset=folder", f"dataset.path={tmp_path}", steps=3)
    assert load_run(photos, [f"dataset.path={run}/../{run.name}"]).dataset.path == str(run.resolve())
    with pytest.raises(UserError, match=r"dataset.path=/nowhere does not exist"):
        load_run(photos, ["dataset.path=/nowhere"])
    assert load_run(run, ["trainer.devices=auto"]).trainer.devices == "auto"  # how many there are, the run will tell


def test_where_images_are_cached_decides_nothing(tmp_path):
    hashes = {config_hash(plain(compose("train", words))) for words in ([], [f"data.cache={tmp_path}"])}
    assert len(hashes) == 1


def test_a_run_of_before_these_keys_is_still_resumed(tmp_path):
    run = begun(tmp_path)
    old = OmegaConf.load(run / "config.yaml")
    before = config_hash(plain(old))
    del old["checkpoint"], old["resume"]
    assert config_hash(plain(old)) == before
    OmegaConf.save(old, run / "config.yaml")
    assert load_run(run, ["checkpoint.keep=2"]).checkpoint == {"every_n_epochs": 1, "every_n_steps": None, "keep": 2, "best": None}


def test_another_number_of_devices_keeps_the_images_per_step():
    class loader:
        global_batch, world_size, total = 16, 1, 100

    place = Place(loader, accumulate=2)
    was = {"batch": 32, "accumulate": 1}
    place.check({"callbacks": {"Place": was}})
    with pytest.raises(UserError, match="trained with 64 images per step, and here it would be 32: set batch_size=32"):
        place.check({"callbacks": {"Place": {**was, "batch": 64}}})
    with pytest.raises(UserError, match="trained on 99 images, and here are 100"):
        place.check({"callbacks": {"Place": {**was, "of": 99}}})
    loader.total = 50  # 32 images in one step, or 48 in two
    with pytest.raises(UserError, match="An epoch of this run has 32 images"):
        place.check({"callbacks": {"Place": was}})
    counts = {"ready": 3, "started": 3, "processed": 3, "completed": 2, "state": 0}
    counts.pop("state")
    progress = {"total": {**counts, "ready": 6, "started": 6, "processed": 6, "completed": 5}, "current": counts, "is_last_batch": False}
    saved = {"callbacks": {"Place": was}, "loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}
    place.on_load_checkpoint(None, None, saved)
    assert progress["current"] == {"ready": 6, "started": 6, "processed": 6, "completed": 5}
    assert progress["total"]["ready"] == 12


def test_a_metric_is_named_rightly():
    check_metric({"checkpoint": {"best": "eval/knn_top1"}})
    with pytest.raises(UserError, match=r"There is no metric 'eval/knn_top'; did you mean 'eval/knn_top1'\?"):
        compose("train", ["checkpoint.best=eval/knn_top"])
    for words in ("checkpoint.every_n_steps=0", "checkpoint.keep=-1", "resume=yes"):
        with pytest.raises(UserError):
            compose("train", [words])


def test_wandb_knows_a_resumed_run_by_its_first_id(tmp_path):
    assert wandb_id(tmp_path) is None
    for name in ("offline-run-20260101_000000-abc123", "run-20260102_000000-abc123", "latest-run"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert wandb_id(tmp_path) == "abc123"
    (tmp_path / "wandb" / "offline-run-20260103_000000-abc123").mkdir()
    assert sync_command(tmp_path).split()[2:] == sorted(str(f) for f in (tmp_path / "wandb").glob("offline*"))
