"""Memory that runs out: one sentence, for real where a limit can be set."""

import multiprocessing
import resource
import sys

import numpy as np
import pytest
import torch

from ssl_zoo import evaluate as E
from ssl_zoo.cli import main
from ssl_zoo.errors import UserError
from ssl_zoo.methods.simclr import SimCLR
from ssl_zoo.shortage import explained, is_shortage, training_tries
from tests.test_protocols import evaluation, tiny
from tests.test_step import SMALL

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = [*SMALL, "epochs=1", "method.hidden_dim=32", "evaluation.baselines=false", "evaluation.linear.final=false"]


def numpy_error():
    try:
        np.empty(1 << 50)
    except MemoryError as e:
        return e


ERRORS = {
    "gpu": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity"), "2.50 GiB more"),
    "cpu": (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
                         "allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"), "4.0 GB more"),
    "cublas": (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ""),
    "python": (MemoryError(), ""),
    "numpy": (numpy_error(), "8.00 PiB more"),
    "system": (OSError(12, "Cannot allocate memory"), ""),
    "threads": (RuntimeError("can't start new thread"), ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", ERRORS)
def test_every_kind_of_shortage_is_known(kind):
    error, amount = ERRORS[kind]
    with pytest.raises(UserError) as e, explained("doing this", ["that", "more"]):
        raise error
    assert str(e.value).startswith("Out of memory while doing this")
    assert amount in str(e.value)
    assert str(e.value).endswith("; try that or more.")


@pytest.mark.parametrize("kind", ["gpu", "python"])
def test_a_step_without_memory_is_one_sentence(kind, tmp_path, monkeypatch, capsys):
    error, amount = ERRORS[kind]
    monkeypatch.chdir(tmp_path)

    def step(self, views, batch):
        raise error

    monkeypatch.setattr(SimCLR, "step", step)
    with pytest.raises(SystemExit) as e:
        main([*WORDS, "run=r"])
    assert e.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("ssl-zoo:")]
    assert line.startswith("ssl-zoo: Out of memory while training with batch_size=8 on images of 32 px")
    assert amount in line
    for part in (" GB at its peak", "batch_size=4 (with trainer.accumulate_grad_batches=2", "chunk_size=4", "trainer.precision=bf16-mixed"):
        assert part in line
    assert "grad_checkpointing" not in line


def test_other_errors_are_left_alone():
    for e in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(2, "No such file"), ValueError("out of memory")):
        assert not is_shortage(e)


def test_what_is_tried_follows_the_config():
    config = {"batch_size": 3, "chunk_size": 1, "trainer": {"accumulate_grad_batches": 4}, "backbone": {"grad_checkpointing": False}}
    found = training_tries(config | {"data": {"resident": False}}, precise=False, transformer=True)
    assert found[0].startswith("batch_size=2 (with trainer.accumulate_grad_batches=8 ")
    assert found[1:] == ["backbone.grad_checkpointing=true", "smaller images"]


def test_an_evaluation_without_memory_is_one_sentence(monkeypatch):
    monkeypatch.setattr(E, "run_protocol", lambda e: torch.empty(1 << 50))
    with pytest.raises(UserError, match=r"Out of memory while judging knn with batch_size=512 .*batch_size=256 or data\.subset"):
        E.evaluate(evaluation("knn", tiny(image_size=16)), {})


def _limited(words, folder):
    """The command under a limit of the address space, which leaves this much to take."""
    sys.stderr = open(folder / "stderr", "w")  # noqa: SIM115
    with open("/proc/self/statm") as f:
        used = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 27), used + (3 << 27)))
    main(words)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are those of Linux")
def test_a_real_limit_is_one_sentence_and_no_hang(tmp_path):
    words = [*WORDS, "batch_size=192", "dataset.train_size=192", "dataset.image_size=96", "augment.compile=false", f"run={tmp_path}/r"]
    context = multiprocessing.get_context("forkserver")  # not from here: what earlier tests have freed would be used up first
    context.set_forkserver_preload(["ssl_zoo.train", "lightning.pytorch"])
    child = context.Process(target=_limited, args=(words, tmp_path))
    child.start()
    child.join(120)
    assert child.exitcode == 2
    told = (tmp_path / "stderr").read_text()
    assert "ssl-zoo: Out of memory while" in told
    assert "under a limit of " in told
    assert "Traceback" not in told
