"""Compose, build, fit, summarise: the one file that knows everything."""

import logging
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from omegaconf import DictConfig

from ssl_zoo.build import build_data, build_method, build_tokens, build_trainer, data_for
from ssl_zoo.callbacks.checkpoint import Checkpoints, onward, unwritten
from ssl_zoo.callbacks.evaluate import Evaluate, Judge
from ssl_zoo.callbacks.guard import Guard
from ssl_zoo.callbacks.health import Health
from ssl_zoo.callbacks.nonfinite import NonFinite
from ssl_zoo.callbacks.place import Place
from ssl_zoo.callbacks.probe import OnlineProbe
from ssl_zoo.callbacks.progress import RunProgress
from ssl_zoo.callbacks.stop import Stop, Stopped, exit_code
from ssl_zoo.callbacks.throughput import Throughput
from ssl_zoo.callbacks.watch import Watch
from ssl_zoo.compiled import compile_backbones, uncompiled
from ssl_zoo.config import plain
from ssl_zoo.continued import changed
from ssl_zoo.data.feed import worker_error
from ssl_zoo.data.loader import Loader
from ssl_zoo.data.ondemand import OnDemand
from ssl_zoo.errors import Ended
from ssl_zoo.evaluation.labelled import labelled_pair
from ssl_zoo.export import save_backbone
from ssl_zoo.facts import facts_of
from ssl_zoo.methods.two_towers import TwoTowers
from ssl_zoo.reports.summary import write_summary
from ssl_zoo.run_folder import claim, first_speaks, of_another, readable_checkpoint, run_folder, say
from ssl_zoo.saved import save_config
from ssl_zoo.shortage import explained, training_tries
from ssl_zoo.slurm import ending
from ssl_zoo.starting import start_towers

DECODE_ONCE = "; data.decoded=true decodes them once, into the cache"


def quieten() -> None:
    """Leave the terminal to the progress bar, and all that the ranks would say alike to the first of them."""
    first_speaks()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of a missing GPU when a CPU compiles
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning|torch|kornia|timm")


def pretrain(config: DictConfig, name: str, commands: list[str], resume: Path | None = None) -> dict[str, Any]:
    """Train as `config` says into a run folder (`resume` continues one) and return its summary. commands: what made the run."""
    quieten()
    file, state = readable_checkpoint(resume) if resume else (None, {})
    started = time.perf_counter()
    L.seed_everything(config.seed, verbose=False)
    data = data_for(config, build_data(config))
    if config.dataset.get("decoded") == "auto":  # a resumed run must not decide anew: the order of an epoch depends on it
        config.dataset.decoded = not isinstance(data.train.pixels, OnDemand)
    method = build_method(config, data)
    if not resume:
        start_towers(method, data)
    run = resume or run_folder(config, name)
    claim(run)
    about = {"name": name, "image_size": data.train.image_size, "mean": data.mean, "std": data.std, "backbone": plain(config.backbone)}
    data_seconds = time.perf_counter() - started

    judge = Judge(data.train, data.test, data.mean, data.std, plain(config.evaluation), config.seed)
    labelled = labelled_pair(data.train, data.test) is None and config.evaluation.online_probe
    probe = OnlineProbe(method.backbone.num_features, data.train.num_classes) if labelled else None
    watch = Health(config.evaluation.health_every_n_steps)
    speed = Throughput(started)
    evaluate = Evaluate(judge, run / "figures", probe, watch, speed)

    def weights(file: Path) -> None:
        epochs = trainer.fit_loop.epoch_progress.current.processed
        save_backbone(method.evaluated, file, about | {"epochs": epochs})

    last = Checkpoints(run / "checkpoints", evaluate, weights, **plain(config.checkpoint))
    stop = Stop(str(run / "checkpoints" / "last.ckpt"), 10, evaluate, config.preemption.deadline_s, lambda number: ending(run, number))
    ranks = Watch(config.trainer.timeout_s, stop, partial(onward, run))
    guard = Guard(run, **plain(config.guard))
    trainer = build_trainer(config, run, [guard, ranks, speed, *([probe] if probe else []), watch, stop, evaluate, RunProgress(), last])
    if trainer.is_global_zero and evaluate.unlabelled:
        print(f"kNN and linear probe are skipped: {evaluate.unlabelled}.")
    loader = Loader(
        data.train,
        config.batch_size,
        config.seed,
        trainer.strategy.root_device,
        trainer.global_rank,
        trainer.world_size,
        config.data.resident,
        config.data.workers,
        config.data.worker_kind,
        trainer.num_devices,
        gather=method.augment is None,  # the engines gather in their own graph
        tokens=build_tokens(method, data.train),
    )
    if trainer.is_global_zero:
        print(f"data          {loader.about()}{DECODE_ONCE if isinstance(data.train.pixels, OnDemand) else ''}")
        if any(getattr(m, "compile_for", None) for m in method.augment.modules()):
            print("views         compiled when the first batch comes, which takes a while (augment.compile=false skips it)")
    trainer.callbacks.append(place := Place(loader, trainer.accumulate_grad_batches))
    if resume:
        place.check(state)
        trainer.strategy.checkpoint_io.replace = file.name != "last.ckpt"
        say("\n".join([f"continuing    {run} after step {state['global_step']}", *(f"changed       {c}" for c in changed(run, config))]))
    if trainer.is_global_zero:
        save_config(config, run, commands)
    steps = -(-len(loader) // trainer.accumulate_grad_batches)
    steps = steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)
    trainer.log_every_n_steps = min(trainer.log_every_n_steps, steps)  # so that every epoch, and the shortest run, shows its loss
    if config.trainer.compile:
        compile_backbones(method)
    tries = training_tries(config, str(trainer.precision).startswith("32"), "grad_checkpointing" in config.backbone)
    try:
        with explained(f"training with batch_size={config.batch_size} on images of {data.train.image_size} px", tries):
            trainer.fit(method, loader, ckpt_path=file, weights_only=True)
            if not evaluate.final:  # the run had been trained to its end, but not judged
                method.to(trainer.strategy.root_device)
                with stop.listening(trainer, method):
                    for callback in (stop, evaluate, last):
                        callback.on_train_end(trainer, method)
    except (Stopped, NonFinite) as e:
        if not trainer.is_global_zero:
            return {}
        if isinstance(e, NonFinite):
            raise
        raise Ended(f"{e} {ending(run, e.number)}", exit_code(e.number)) from None
    except (OSError, RuntimeError) as e:
        if (ended := worker_error(e) or unwritten(e, run) or ranks.lost(e) or of_another(e, file) or uncompiled(e)) is None:
            raise
        raise ended from e
    if not trainer.is_global_zero:
        return {}

    if isinstance(method, TwoTowers):
        save_backbone(method, run / "towers.safetensors", about | {"epochs": trainer.fit_loop.epoch_progress.current.processed})
    weights(run / "backbone.safetensors")
    facts = facts_of(config, name, commands, run, method, data, loader, evaluate.skipped) | {"skipped_steps": guard.skipped}
    return write_summary(run, facts, trainer, evaluate, speed, data_seconds)
