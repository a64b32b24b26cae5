"""What each verb of `ssl-zoo` does with its words, and gives to Python: a path, a summary or results; a number is an exit code. Whatever
needs torch is imported last, once the command is known to be good.
"""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_zoo.command_line import command_line, config_dirs, take_run
from ssl_zoo.errors import UserError

GROUPS = ("method", "backbone", "dataset", "augment", "optimizer", "trainer", "logger", "evaluation", "recipe", "experiment", "protocol")
LISTED = (*GROUPS, "suite", "sweep")


# ---------------------------------------------------------------------------------------------- verbs
def do_pretrain(words: list[str], options: dict[str, str]) -> dict[str, Any] | int:
    from ssl_zoo.config import compose, run_name
    from ssl_zoo.launch import begun, prepare, rank, refuse_taken

    config = compose("train", words, config_dirs(options))
    if "cfg" in options:
        return show(config)
    prepare(config, [word.partition("=")[0] for word in words])
    name = run_name(words, config_dirs(options))
    commands, resume = [command_line(words, options)], None
    if config.resume == "auto":
        from ssl_zoo.continued import run_to_continue
        from ssl_zoo.saved import commands_of

        resume, done = run_to_continue(config, name)
        if resume and done:
            again = (
                f"run={resume} has finished its {config.epochs} epochs: see {resume}/report.html (without resume=auto a new run starts)."
            )
            if rank() == 0:
                print(again)
            return json.loads((resume / "summary.json").read_text(encoding="utf-8"))
        commands = list(dict.fromkeys([*commands_of(resume), *commands])) if resume else commands
    if resume is None and (run := begun(config, name)):
        return do_resume([f"run={run}", *(w for w in words if w.startswith("trust="))], options)
    if resume is None and config.run and rank() == 0:
        refuse_taken(Path(config.run), config.resume)  # again when the folder is made, after the data are read
    from ssl_zoo.train import pretrain

    return finish(pretrain(config, name, commands, resume=resume))


def do_resume(words: list[str], options: dict[str, str]) -> dict[str, Any] | int:
    from ssl_zoo.continued import has_checkpoint
    from ssl_zoo.launch import prepare
    from ssl_zoo.saved import commands_of, load_run, name_of

    run, words = take_run(words, "resume")
    config = load_run(run, words)
    if "cfg" in options:
        return show(config)
    prepare(config, ("trainer.devices", "trainer.num_nodes"))
    if not has_checkpoint(run):
        raise UserError(f"{run}/checkpoints/last.ckpt is missing, so there is nothing to continue: start the run again.")
    done = finished_epochs(run)
    if done is not None and config.epochs <= done:
        raise UserError(f"run={run} has finished its {done} epochs: add epochs={2 * done} to train on, or see {run}/report.html.")
    before = commands_of(run)
    commands = [*before, *([command_line([f"run={run}", *words], {}, "resume")] if words else [])]
    name = name_of(before) or run.resolve().parent.name
    from ssl_zoo.train import pretrain

    return finish(pretrain(config, name, commands, resume=run))


def do_eval(words: list[str], options: dict[str, str]) -> list[dict[str, Any]] | int:
    from ssl_zoo.config import compose
    from ssl_zoo.judging import judged_folder, plan

    if "cfg" in options:
        return show(compose("eval", words, config_dirs(options)))
    config, trained, wanted = plan(words, config_dirs(options))
    from ssl_zoo.evaluate import evaluate_all
    from ssl_zoo.reports.html import write_evaluations, write_report
    from ssl_zoo.reports.results import told as numbers

    found = []
    try:
        for judgement in evaluate_all(config, trained, wanted):
            found.append(judgement)
    finally:  # what was judged before an error is shown all the same
        if found:
            print(numbers([result for _, result in found]))
            print("\n".join(f"{'written to':14}{file}" for file, _ in found))
            folder = judged_folder(config)
            whole = (folder / "summary.json").is_file()
            page = told(write_report, folder) if whole else write_evaluations(folder, str(config.run or config.weights))
            print(f"{'report':14}{page}")
    return [result for _, result in found]


def do_preview(words: list[str], options: dict[str, str]) -> Path | int:
    from ssl_zoo.config import compose

    config = compose("preview", words, config_dirs(options))
    if "cfg" in options:
        return show(config)
    from ssl_zoo.verbs import preview

    print(file := preview(config))
    return file


def do_shard(words: list[str], options: dict[str, str]) -> Path | int:
    from ssl_zoo.config import compose
    from ssl_zoo.shard import check_shard, dataset_words

    config = compose("shard", dataset_words(words, config_dirs(options)), config_dirs(options))
    if "cfg" in options:
        return show(config)
    check_shard(Path(config.out).expanduser(), config.dataset.get("path"), config.format)
    from ssl_zoo.verbs import shard

    print(shard(config))
    return Path(config.out).expanduser()


def do_export(words: list[str], options: dict[str, str]) -> Path | int:
    from ssl_zoo.config import compose
    from ssl_zoo.exporting import check_export, export

    config = compose("export", words, config_dirs(options))
    if "cfg" in options:
        return show(config)
    run, trained, out = check_export(config)
    print("\n".join(export(config, run, trained, out)))
    return out


def do_embed(words: list[str], options: dict[str, str]) -> Path | int:
    from ssl_zoo.embedding import check_embed, embed, embed_config

    config = embed_config(words, config_dirs(options))
    if "cfg" in options:
        return show(config)
    print("\n".join(embed(config, check_embed(config))))
    return Path(str(config.out)).expanduser()


def do_search(words: list[str], options: dict[str, str]) -> Path | int:
    from ssl_zoo.searching import check_search, search, search_config, search_folder

    config = search_config(words, config_dirs(options))
    if "cfg" in options:
        return show(config)
    print("\n".join(search(config, check_search(config))))
    return search_folder(config)


def do_classify(words: list[str], options: dict[str, str]) -> list[dict[str, Any]] | int:
    from ssl_zoo.classify import check_classify, classify_config

    config = classify_config(words, config_dirs(options))
    if "cfg" in options:
        return show(config)
    trained = check_classify(config)
    from ssl_zoo.verbs import classify

    return classify(config, trained)


def do_report(words: list[str], options: dict[str, str]) -> Path:
    if any(w.startswith("runs=") for w in words):
        from ssl_zoo.stale import report_words

        return report_words(words)
    run, words = take_run(words, "report")
    if words:
        raise UserError(f"report takes run=... only, or runs=..., not '{words[0]}'.")
    if finished_epochs(run) is None:
        raise UserError(f"run={run} has no summary.json: let the run finish first.")
    from ssl_zoo.reports.html import write_report

    print(page := told(write_report, run))
    return page


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


def finished_epochs(run: Path) -> int | None:
    """How many epochs a finished run trained for; None for a run without summary.json."""
    file = run / "summary.json"
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["epochs"]) if file.is_file() else None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
        raise UserError(f"{file} cannot be read: delete it and run ssl-zoo resume run={run} to have it written anew.") from e


def told(write: Callable[[Path], Path], run: Path) -> Path:
    """The page of a run folder that anyone may have written."""
    try:
        return write(run)
    except Exception as e:  # what a damaged file raises depends on what it holds
        if isinstance(e, UserError) or (isinstance(e, OSError) and e.errno != errno.EINVAL):  # of a place in a file that cannot be
            raise
        files = "summary.json, metrics.csv or figures/data.npz"
        raise UserError(f"The report of {run} cannot be made ({type(e).__name__}: {str(e)[:160]}): {files} of it is damaged.") from e


def finish(summary: dict[str, Any]) -> dict[str, Any]:
    """Draw the report and print the six-line table; on ranks above 0 there is nothing to print."""
    if not summary:
        return summary
    from ssl_zoo.reports.html import table, write_report

    run = Path(summary["run"])
    write_report(run)
    for key, value in table(summary, run):
        print(f"{key:14}{value}")
    if summary.get("sync"):
        print(f"upload with: {summary['sync']}")
    return summary


HANDLERS: dict[str, Callable[[list[str], dict[str, str]], Any]] = {
    "pretrain": do_pretrain,
    "eval": do_eval,
    "resume": do_resume,
    "preview": do_preview,
    "shard": do_shard,
    "export": do_export,
    "embed": do_embed,
    "search": do_search,
    "classify": do_classify,
    "report": do_report,
    "benchmark": do_benchmark,
    "list": do_list,
}
