"""The `ssl-zoo` command. Everything that can be wrong with a command is said here, before torch is imported."""

import errno
import io
import sys
import time

from ssl_zoo import __version__
from ssl_zoo.command_line import split_options
from ssl_zoo.errors import Ended, UserError, one_line
from ssl_zoo.files import REFUSED

VERBS = {
    "pretrain": "train a backbone without labels (the default verb)",
    "eval": "judge a run or other weights: ssl-zoo eval run=runs/... protocol=linear [dataset=...] (ssl-zoo list protocols)",
    "classify": 'pictures by words: ssl-zoo classify image=photo.jpg labels="cat,dog" run=runs/... (of clip or siglip)',
    "resume": "continue a run: ssl-zoo resume run=runs/... [epochs=200]",
    "preview": "a picture of augmented views: ssl-zoo preview method=simclr dataset=folder dataset.path=...",
    "shard": "pack a data set into a few large files: ssl-zoo shard data=photos out=shards [format=tar|litdata] [size=256]",
    "export": "a run for other libraries: ssl-zoo export run=runs/... format=timm|torchvision|onnx|huggingface|... [out=FOLDER]",
    "embed": "features of images in a file: ssl-zoo embed run=runs/... data=photos out=features.parquet",
    "search": "neighbours and near-duplicates: ssl-zoo search run=runs/... data=photos query=photo.jpg [duplicates=0.98]",
    "report": "a run on a page, or many in a table: ssl-zoo report run=runs/... | runs=FOLDER|GLOB [out=FOLDER]",
    "benchmark": "many runs and their table: ssl-zoo benchmark suite=NAME|FILE.yaml [seed=0,1,2] [key=value ...]",
    "list": "what there is: ssl-zoo list [methods|backbones|datasets|suites|...]",
}
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
    """Entry point; exits with 0, with 2 after a sentence on bad input, with 130 after Ctrl-C, with 1 when a job of many failed or a rank
    was lost, with 143 after SIGTERM and with 75 where it asks to be run again.
    """
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name of bytes that are no text ends no run
    try:
        code = run(argv)
    except UserError as e:
        print(f"ssl-zoo: {own_words()}{one_line(e)}", file=sys.stderr)
        code = 2
    except Ended as e:
        print(f"\n{own_words()}{e}", file=sys.stderr)
        code = e.code
    except KeyboardInterrupt as e:
        print(f"\n{e}" if str(e) else "\nssl-zoo: stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 0
    except (MemoryError, RuntimeError, OSError) as e:
        if (sentence := of_the_system(e)) is None:
            raise
        print(f"ssl-zoo: {own_words()}{one_line(sentence)}", file=sys.stderr)
        code = 2
    sys.exit(code)


def of_the_system(e: BaseException) -> str | None:
    """What to say of a full disk, a path that cannot be used, or a lack of memory; None for other errors."""
    from ssl_zoo.shortage import is_shortage, shortage

    if is_shortage(e):
        return str(shortage(e, "getting ready", ["data.resident=false", "data.decoded=false", "data.subset"]))
    if isinstance(e, OSError) and e.errno in REFUSED:
        return f"Cannot write {e.filename or 'a file'} ({e.strerror}): free space, or choose a folder you can write."
    if isinstance(e, OSError) and e.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
        return f"{str(e.filename or 'a path')[:160]} cannot be used ({e.strerror}): choose another path."
    return None


def own_words() -> str:
    """Before what a rank above 0 has to say: rank 0 says what all would say, and what started them may then end this one."""
    from ssl_zoo.launch import rank

    if not rank():
        return ""
    time.sleep(3)
    return f"rank {rank()}: "


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
    if any(w.lstrip("+~").startswith(("sweep=", "sweep.")) for w in words):
        raise UserError("sweep=... says where the jobs of -m run: add -m.")
    from ssl_zoo.commands import HANDLERS

    found = HANDLERS[verb](words, options)
    return found if isinstance(found, int) else 0


def help_page() -> str:
    from ssl_zoo.commands import GROUPS
    from ssl_zoo.config import choice_names

    groups = {g: ", ".join(choice_names(g)) for g in GROUPS}
    return HELP.format(
        version=__version__,
        verbs="\n".join(f"  {v:10} {what}" for v, what in VERBS.items()),
        groups="\n".join(f"  {g + '=':12} {names}" for g, names in groups.items() if names),
    ).rstrip()


if __name__ == "__main__":
    main()
