"""The `ssl-zoo` command. Everything that can be wrong with a command is said here, before torch is imported."""

import errno
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from ssl_zoo import __version__
from ssl_zoo.errors import UserError

VERBS = {
    "pretrain": "train a backbone without labels (the default verb)",
    "eval": "judge a run or other weights: ssl-zoo eval run=runs/... protocol=linear [dataset=...] (ssl-zoo list protocols)",
    "resume": "continue a run: ssl-zoo resume run=runs/... [epochs=200]",
    "preview": "a picture of augmented views: ssl-zoo preview method=simclr dataset=folder dataset.path=...",
    "shard": "pack a data set into a few large files: ssl-zoo shard data=photos out=shards [format=tar|litdata] [size=256]",
    "report": "a run on a page, or many in a table: ssl-zoo report run=runs/... | runs=FOLDER|GLOB [out=FOLDER]",
    "benchmark": "many runs and their table: ssl-zoo benchmark suite=NAME|FILE.yaml [seed=0,1,2] [key=value ...]",
    "list": "what there is: ssl-zoo list [methods|backbones|datasets|suites|...]",
}
GROUPS = ("method", "backbone", "dataset", "augment", "optimizer", "trainer", "logger", "evaluation", "recipe", "experiment", "protocol")
LISTED = (*GROUPS, "suite")
HELP = """ssl-zoo {version} - self-supervised pretraining of vision backbones

usage: ssl-zoo [verb] [key=value ...] [options]

verbs
{verbs}

what a run is composed of (ssl-zoo list <group> tells more)
{groups}

often changed
  epochs=100  batch_size=256  seed=0  optimizer.base_lr=0.3  trainer.devices=1  data.subset=10000  run=runs/mine

options
  --cfg job            print the composed config (benchmark: every run and its state) and stop
  -m, --multirun       one run for each combination of comma-separated values
  --config-dir DIR     more configs: DIR/method/mine.yaml makes method=mine
  -h, --help           this page
  --version            the version

examples
  ssl-zoo                                                  SimCLR, a tiny backbone, rendered shapes: minutes on a laptop
  ssl-zoo method=simclr backbone=resnet18 dataset=cifar10
  ssl-zoo backbone=vit_s dataset=folder dataset.path=photos trainer.devices=8
  ssl-zoo -m method=simclr backbone=resnet18,vit_s seed=0,1
"""


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 0, with 2 after a sentence on bad input, with 130 after Ctrl-C, with 1 when a job of many failed."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        code = run(argv)
    except UserError as e:
        print(f"ssl-zoo: {e}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as e:
        print(f"\n{e}" if str(e) else "\nssl-zoo: stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 0
    except OSError as e:
        if e.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        place = e.filename or "a file"
        print(f"ssl-zoo: Cannot write {place} ({e.strerror}): free space, or choose a folder you can write.", file=sys.stderr)
        code = 2
    sys.exit(code)


def run(argv: list[str]) -> int:
    options, words = split_options(argv)
    verb = words.pop(0) if words and "=" not in words[0] and not words[0].startswith(("+", "~")) else "pretrain"
    if verb not in VERBS:
        from ssl_zoo.checks import nearest

        hint = nearest(verb, VERBS)
        raise UserError(f"There is no verb '{verb}'; " + (f"did you mean '{hint}'?" if hint else f"choose one of: {', '.join(VERBS)}."))
    if "help" in options:
        print(help_page())
        return 0
    if "version" in options:
        print(f"ssl-zoo {__version__}")
        return 0
    if "multirun" in options:
        if verb != "pretrain":
            raise UserError(f"-m works with pretrain only, not with {verb}.")
        from ssl_zoo.multirun import multirun

        return multirun(words, options)
    handlers: dict[str, Callable[[list[str], dict[str, str]], int]] = {
        "pretrain": do_pretrain,
        "eval": do_eval,
        "resume": do_resume,
        "preview": do_preview,
        "shard": do_shard,
        "report": do_report,
        "benchmark": do_benchmark,
        "list": do_list,
    }
    return handlers[verb](words, options)


def split_options(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options ({name: value}) and the other words."""
    options: dict[str, str] = {}
    words: list[str] = []
    short = {"-h": "--help", "-m": "--multirun", "-c": "--cfg"}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            words.append(word)
            continue
        name, _, value = short.get(word, word).partition("=")
        if name in ("--help", "--version", "--multirun"):
            options[name[2:]] = ""
        elif name in ("--cfg", "--config-dir"):
            if not value and (not rest or "=" in rest[0] or rest[0].startswith("-")):
                raise UserError(f"{name} needs a value: {'--cfg job' if name == '--cfg' else '--config-dir FOLDER'}.")
            options[name[2:]] = value or rest.pop(0)
        else:
            from ssl_zoo.checks import unknown

            raise unknown("option", word, ["--help", "--version", "--multirun", "--cfg", "--config-dir", "-m", "-h"])
    if options.get("cfg", "job") != "job":
        raise UserError("--cfg takes the word job: ssl-zoo ... --cfg job prints the composed config.")
    return options, words


def help_page() -> str:
    from ssl_zoo.config import choice_names

    groups = {g: ", ".join(choice_names(g)) for g in GROUPS}
    return HELP.format(
        version=__version__,
        verbs="\n".join(f"  {v:10} {what}" for v, what in VERBS.items()),
        groups="\n".join(f"  {g + '=':12} {names}" for g, names in groups.items() if names),
    ).rstrip()


def command_line(words: list[str], options: dict[str, str], verb: str = "") -> str:
    folder = ["--config-dir", options["config-dir"]] if "config-dir" in options else []
    return shlex.join(["ssl-zoo", *([verb] if verb else []), *folder, *words])


def config_dirs(options: dict[str, str]) -> list[str]:
    return [options["config-dir"]] if "config-dir" in options else []


# ---------------------------------------------------------------------------------------------- verbs
def do_pretrain(words: list[str], options: dict[str, str]) -> int:
    from ssl_zoo.config import compose, run_name

    config = compose("train", words, config_dirs(options))
    if "cfg" in options:
        return show(config)
    name = run_name(words, config_dirs(options))
    from ssl_zoo.train import pretrain

    return finish(pretrain(config, name, [command_line(words, options)]))


def do_resume(words: list[str], options: dict[str, str]) -> int:
    from ssl_zoo.saved import commands_of, load_run

    run, words = take_run(words, "resume")
    config = load_run(run, words)
    if "cfg" in options:
        return show(config)
    if not (run / "checkpoints" / "last.ckpt").is_file():
        raise UserError(f"{run}/checkpoints/last.ckpt is missing, so there is nothing to continue: start the run again.")
    done = finished_epochs(run)
    if done is not None and config.epochs <= done:
        raise UserError(f"run={run} has finished its {done} epochs: add epochs={2 * done} to train on, or see {run}/report.html.")
    commands = [*commands_of(run), *([command_line([f"run={run}", *words], {}, "resume")] if words else [])]
    from ssl_zoo.train import pretrain

    return finish(pretrain(config, run.resolve().parent.name, commands, resume=run))


def do_eval(words: list[str], options: dict[str, str]) -> int:
    from ssl_zoo.config import compose
    from ssl_zoo.judging import judged_folder, plan

    if "cfg" in options:
        return show(compose("eval", words, config_dirs(options)))
    config, trained, wanted = plan(words, config_dirs(options))
    from ssl_zoo.reports.html import write_evaluations, write_report
    from ssl_zoo.reports.results import told
    from ssl_zoo.verbs import evaluate_all

    found = evaluate_all(config, trained, wanted)
    print(told([result for _, result in found]))
    print("\n".join(f"{'written to':14}{file}" for file, _ in found))
    folder = judged_folder(config)
    whole = (folder / "summary.json").is_file()
    print(f"{'report':14}{write_report(folder) if whole else write_evaluations(folder, str(config.run or config.weights))}")
    return 0


def do_preview(words: list[str], options: dict[str, str]) -> int:
    from ssl_zoo.config import compose

    config = compose("preview", words, config_dirs(options))
    if "cfg" in options:
        return show(config)
    from ssl_zoo.verbs import preview

    print(preview(config))
    return 0


def do_shard(words: list[str], options: dict[str, str]) -> int:
    from ssl_zoo.config import compose
    from ssl_zoo.shard import check_shard, dataset_words

    config = compose("shard", dataset_words(words, config_dirs(options)), config_dirs(options))
    if "cfg" in options:
        return show(config)
    check_shard(Path(config.out).expanduser(), config.dataset.get("path"), config.format)
    from ssl_zoo.verbs import shard

    print(shard(config))
    return 0


def do_report(words: list[str], options: dict[str, str]) -> int:
    if any(w.startswith("runs=") for w in words):
        from ssl_zoo.stale import report_words

        return report_words(words)
    run, words = take_run(words, "report")
    if words:
        raise UserError(f"report takes run=... only, or runs=..., not '{words[0]}'.")
    if finished_epochs(run) is None:
        raise UserError(f"run={run} has no summary.json: let the run finish first.")
    from ssl_zoo.reports.html import write_report

    print(write_report(run))
    return 0


def do_benchmark(words: list[str], options: dict[str, str]) -> int:
    from ssl_zoo.benchmark import benchmark

    return benchmark(words, options)


def do_list(words: list[str], options: dict[str, str]) -> int:
    from ssl_zoo.checks import unknown
    from ssl_zoo.config import choice_names

    if len(words) > 1:
        raise UserError(f"list takes one group, not '{' '.join(words)}'.")
    plural = {(f"{g[:-1]}ies" if g.endswith("y") else f"{g}s"): g for g in LISTED}
    if words and words[0] not in plural and words[0] not in LISTED:
        raise unknown("group", words[0], plural)
    for group in [plural.get(words[0], words[0])] if words else ("method", "backbone", "dataset"):
        print(f"{group}=")
        for name, what in choice_names(group, config_dirs(options)).items():
            print(f"  {name:14} {what}")
    return 0


# ---------------------------------------------------------------------------------------------- helpers
def show(config: object) -> int:
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(config), end="")
    return 0


def take_run(words: list[str], verb: str) -> tuple[Path, list[str]]:
    """The folder of run=... and the other words."""
    runs = [w.partition("=")[2] for w in words if w.startswith("run=")]
    if len(runs) != 1 or not runs[0]:
        raise UserError(f"{verb} needs one run folder: ssl-zoo {verb} run=runs/<name>/<time>.")
    if not Path(runs[0]).is_dir():
        raise UserError(f"run={runs[0]} is not a folder.")
    return Path(runs[0]), [w for w in words if not w.startswith("run=")]


def finished_epochs(run: Path) -> int | None:
    """How many epochs a finished run trained for; None for a run without summary.json."""
    import json

    file = run / "summary.json"
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["epochs"]) if file.is_file() else None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file} cannot be read: delete it and run ssl-zoo resume run={run} to have it written anew.") from e


def finish(summary: dict) -> int:
    """Draw the report and print the six-line table; on ranks above 0 there is nothing to print."""
    if not summary:
        return 0
    from ssl_zoo.reports.html import table, write_report

    run = Path(summary["run"])
    write_report(run)
    for key, value in table(summary, run):
        print(f"{key:14}{value}")
    if summary.get("sync"):
        print(f"upload with: {summary['sync']}")
    return 0


if __name__ == "__main__":
    main()
