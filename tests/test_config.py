"""Composition, and the answers to what cannot work."""

import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, command
from omegaconf import OmegaConf

from ssl_zoo.augment.spec import resolve_all
from ssl_zoo.checks import check_located, nearest
from ssl_zoo.config import choice_names, compose, conf_dir, expand, plain, run_name
from ssl_zoo.errors import UserError
from ssl_zoo.fingerprint import changes, config_hash, leaves
from ssl_zoo.methods.base import Method
from ssl_zoo.saved import commands_of, load_run, save_config


@pytest.fixture
def user_conf(tmp_path):
    def write(name, text):
        file = tmp_path / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return [str(tmp_path / "conf")]

    return write


# ---------------------------------------------------------------------------------------------- composition
def test_defaults_and_the_optimizer_that_suits_the_backbone():
    config = compose("train", [])
    assert (config.optimizer.name, config.trainer.max_epochs) == ("sgd", config.epochs)
    assert compose("train", ["backbone=vit_s"]).optimizer.name == "adamw"
    assert compose("train", ["backbone=timm", "backbone.name=swin_tiny_patch4_window7_224"]).optimizer.name == "adamw"
    assert compose("train", ["backbone=vit_s", "optimizer=sgd"]).optimizer.name == "sgd"


CHOICES = {g: [f.stem for f in (conf_dir() / g).glob("*.yaml")] for g in ("method", "backbone", "dataset")}


@pytest.mark.parametrize("method", CHOICES["method"])
def test_every_method_composes_with_every_backbone_and_every_dataset(method):
    for b, d in [(b, "shapes") for b in CHOICES["backbone"]] + [("resnet18", d) for d in CHOICES["dataset"]]:
        extra = ["dataset.path=."] * (d in ("folder", "parquet", "imagenet", "shards")) + ["backbone.name=resnet18"] * (b == "timm")
        assert compose("train", [f"method={method}", f"backbone={b}", f"dataset={d}", *extra]).method


@pytest.mark.parametrize("recipe", sorted(f.stem for f in (conf_dir() / "recipe").glob("*.yaml")))
def test_every_recipe_composes_and_is_short(recipe):
    method, backbone, dataset, *_ = recipe.split("-")
    words = [f"method={method.removesuffix('_v1')}", f"backbone={backbone}", f"dataset={dataset}", f"recipe={recipe}"]
    words += ["dataset.path=."] * (dataset == "imagenet")
    plain_run = compose("train", [*words[:3], *words[4:], "recipe=none"])
    assert compose("train", words) != plain_run
    assert len((conf_dir() / "recipe" / f"{recipe}.yaml").read_text().splitlines()) <= 15


# peak rate, the rate that the cosine ends at, decay, epochs, global batch; and what else tells the published run
PUBLISHED = {
    "simclr-resnet50-imagenet": (4.8, 0.0, 1e-6, 100, 4096, {"method.temperature": 0.1, "optimizer.name": "lars"}),
    "moco-resnet50-imagenet": (0.03, 0.0, 1e-4, 200, 256, {"method.queue_size": 65536, "method.momentum": 0.999,
                               "method.temperature": 0.2}),
    "moco_v1-resnet50-imagenet": (0.03, 0.0, 1e-4, 200, 256, {"method.temperature": 0.07, "method.num_layers": 1,
                                  "optimizer.milestones": [0.6, 0.8], "augment.view1.jitter.hue": 0.4, "augment.view2.blur.p": 0.0}),
    "moco_v3-resnet50-imagenet": (9.6, 0.0, 1e-6, 100, 4096, {"augment.view2.crop.scale": [0.2, 1.0], "method.momentum": 0.99}),
    "moco_v3-vit_s-imagenet": (2.4e-3, 0.0, 0.1, 300, 4096, {"optimizer.warmup_epochs": 40, "backbone.kwargs.num_heads": 12}),
    "byol-resnet50-imagenet": (4.8, 0.0, 1e-6, 300, 4096, {"method.momentum": 0.99, "augment.view2.solarize.p": 0.2}),
    "simsiam-resnet50-imagenet": (0.1, 0.0, 1e-4, 100, 512, {"method.pred_dim": 512, "optimizer.warmup_epochs": 0}),
    "dino-vit_s-imagenet": (1e-3, 1e-6, 0.04, 100, 512, {"method.norm_last_layer": True, "optimizer.final_weight_decay": 0.4,
                            "method.teacher_temp": 0.04, "backbone.kwargs.drop_path_rate": 0.1, "augment.local_crops": 8}),
    "dino-resnet50-imagenet": (0.06, 1e-6, 1e-4, 100, 512, {"augment.local.crop.scale": [0.05, 0.14], "optimizer.name": "sgd"}),
    "barlow_twins-resnet50-imagenet": (1.6, 1.6e-3, 1e-6, 1000, 2048, {"method.lambd": 0.0051, "method.proj_dim": 8192,
                                       "optimizer.bias_base_lr": 1.5e-4}),
    "vicreg-resnet50-imagenet": (1.6, 1.6e-3, 1e-6, 1000, 2048, {"method.cov_coeff": 1.0, "method.hidden_dim": 8192}),
}  # fmt: skip


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_recipe_of_a_published_run_has_its_numbers(recipe):
    method, backbone, dataset = recipe.split("-")
    words = [f"method={method.removesuffix('_v1')}", f"backbone={backbone}", f"dataset={dataset}", "dataset.path=.", f"recipe={recipe}"]
    config = compose("train", words)
    peak, last, decay, epochs, batch, others = PUBLISHED[recipe]
    optimizer = config.optimizer
    assert 8 * config.batch_size == batch  # on eight devices
    assert config.epochs == epochs
    assert optimizer.base_lr * batch / 256 == pytest.approx(peak)
    assert optimizer.base_lr * batch / 256 * optimizer.final_lr == pytest.approx(last, rel=0.01)
    assert optimizer.weight_decay == decay
    assert {key: OmegaConf.select(config, key) for key in others} == others


def test_a_recipe_is_picked_up_by_itself_and_the_command_line_wins(user_conf):
    text = "# @package _global_\nepochs: 7\noptimizer: {name: lars, base_lr: 9.0}\n"
    dirs = user_conf("recipe/simclr-vit_s-cifar10.yaml", text)
    command = ["method=simclr", "backbone=vit_s", "dataset=cifar10"]
    config = compose("train", command, dirs)
    assert (config.epochs, config.optimizer.name, config.optimizer.base_lr) == (7, "lars", 9.0)
    assert compose("train", [*command, "epochs=3"], dirs).epochs == 3
    assert compose("train", [*command, "optimizer.base_lr=1"], dirs).optimizer.base_lr == 1
    chosen = compose("train", [*command, "optimizer=adamw"], dirs)  # a group on the command line is not retuned
    assert (chosen.epochs, chosen.optimizer.name, chosen.optimizer.base_lr) == (7, "adamw", 5e-4)
    assert compose("train", [*command, "recipe=none"], dirs).epochs == 100
    assert compose("train", [*command, "recipe=null", "experiment=null"], dirs).epochs == 100
    assert compose("train", ["dataset=cifar10", "backbone=vit_s", "recipe=simclr-vit_s-cifar10"], dirs).epochs == 7


def test_an_experiment_overrides_groups_and_values(user_conf):
    dirs = user_conf("experiment/mine.yaml", "# @package _global_\ndefaults:\n  - override /backbone: vit_t\nepochs: 4\n")
    config = compose("train", ["experiment=mine"], dirs)
    assert (config.epochs, config.optimizer.name, config.backbone.name) == (4, "adamw", "vit_tiny_patch16_224")
    assert run_name(["experiment=mine"], dirs) == "simclr_vit_t_shapes"


def test_open_tables_take_any_key():
    config = compose("train", ["backbone=vit_s", "backbone.kwargs.drop_path_rate=0.1", "augment.view1.jitter.strength=0.7"])
    assert config.backbone.kwargs.drop_path_rate == 0.1
    assert config.augment.view1.jitter.strength == 0.7


def test_run_names():
    assert run_name(["backbone=vit_s", "dataset=cifar10"]) == "simclr_vit_s_cifar10"
    assert run_name(["backbone=timm", "backbone.name=regnetx_002"]) == "simclr_regnetx_002_shapes"


def test_multirun_expands_to_every_combination():
    jobs = expand(["method=simclr", "backbone=resnet18,vit_s", "seed=0,1"])
    assert len(jobs) == 4
    assert ["method=simclr", "backbone=vit_s", "seed=1"] in jobs


# ---------------------------------------------------------------------------------------------- bad input
ANSWERS = {
    "metod=dino": "no key 'metod'; did you mean 'method'?",
    "method=dnio": "There is no method 'dnio'",
    "method=simlcr": "did you mean 'simclr'?",
    "backbone=resnet81": "did you mean 'resnet18'?",
    "trainer.max_epoch=3": "did you mean 'trainer.max_epochs'?",
    "epoch=3": "did you mean 'epochs'?",
    "dataset.subset=3": "did you mean 'data.subset'?",
    "epochs=abc": "epochs takes a whole number",
    "epochs=0": "epochs takes a whole number of at least 1",
    "epochs=2.5": "epochs takes a whole number",
    "chunk_size=0": "chunk_size takes null or a whole number of at least 1",
    "chunk_size=-3": "chunk_size takes null or a whole number",
    "chunk_size=2.5": "chunk_size takes null or a whole number",
    "batch_size=-4": "batch_size takes a whole number of at least 2",
    "method.hidden_dim=wide": "method.hidden_dim takes a whole number",
    "method.init=3": "no key 'method.init'",
    "method.sync_bn=3": "takes true or false",
    "optimizer.base_lr=fast": "optimizer.base_lr takes a number",
    "method.temperature=0": "method.temperature takes a number above 0",
    "evaluation.linear.l2=[]": "a list of at least one number",
    "data.resident=maybe": "data.resident takes auto, true or false",
    "augment.view1.flip=1.5": "augment.view1.flip=1.5 does not work: it takes a number from 0 to 1",
    "augment.view1.crop.scale=[1,0.2]": "takes [a, b] with",
    "augment.view1.crop.interpolation=nearst": "bilinear or bicubic",
    "method._target_=ssl_zoo.methods.simclr.SimCRL": "did you mean 'ssl_zoo.methods.simclr.SimCLR'?",
    "method._target_=os.system": "not from a trusted package",
    "method._target_=nowhere.Thing": "not from a trusted package",
    "dataset=folder": "dataset.path is needed: add dataset.path=",
    "dataset=parquet dataset.path=/does/not/exist": "dataset.path=/does/not/exist does not exist",
    "seed=0,1": "add -m",
    "epochs": "neither a verb nor an override",
    "epochs=[": "Cannot read 'epochs=['",
    "recipe=nothing": "There is no recipe 'nothing'",
    "out=null": "out=null does not work: runs go into a folder there",
    "optimizer.eps=0": "optimizer.eps takes null or a number above 0",
    "method=null": "method=null does not work",
    "=3": "neither a verb nor an override",
    "~trainer.compile": "trainer.compile is needed",
    "augment.view2=null": "augment has view1: a method takes view1 and view2",
    "+augment.view3=${augment.view2}": "augment has view1, view2, view3",
    "augment.view1.size=4": "a whole number of pixels from 8",
    "augment.view1.size=abc": "a whole number of pixels from 8",
    "augment.view1.size=64": "both need the same size",
    "augment.view1.crop=null": "augment.view1 cannot be read",
    "augment.view1.jitter.strength={a:1}": "augment.view1",
    "augment.local_crops=-1": "a whole number from 0 to 64",
    "trainer.strategy=ddp_spawn": "but for ddp_spawn",
    "method=siglip method.max_scale=0": "null or a number of at least 1",
    "method.hidden_dim=0": "a whole number of at least 1",
    "method.num_layers=0": "a whole number of at least 1",
    "optimizer.base_lr=inf": "a number of at least 0",
    "optimizer.momentum=-2": "from 0 to below 1",
    "optimizer=adamw optimizer.betas=[0.9,1.5]": "two numbers from 0 to below 1",
    "logger.name=mlflow": "csv, tensorboard or wandb",
    "~method": "method",
}


@pytest.mark.parametrize("words", ANSWERS)
def test_bad_input_is_answered_in_one_sentence(words):
    with pytest.raises(UserError) as e:
        compose("train", words.split())
    assert ANSWERS[words] in str(e.value)
    assert "\n" not in str(e.value)


def test_unknown_keys_in_the_users_own_files_are_found(user_conf):
    dirs = user_conf("experiment/typo.yaml", "# @package _global_\noptimizer: {base_rl: 3}\n")
    with pytest.raises(UserError, match=r"did you mean 'optimizer\.base_lr'"):
        compose("train", ["experiment=typo"], dirs)


@pytest.mark.parametrize("method", ["clip", "siglip"])
def test_the_temperature_may_be_without_bound(method):
    assert compose("train", [f"method={method}", "method.max_scale=null"]).method.max_scale is None


def test_own_packages_need_trust():
    with pytest.raises(UserError, match="needs the package 'mypkg'"):
        compose("train", ["method._target_=mypkg.Method", "trust=[mypkg]"])


def test_trusted_names_do_not_lead_elsewhere():
    for target in ("torch.os.system", "torch.hub.load", "torch.load", "ssl_zoo.config.hydra.utils.get_method", "torch.nn.Nothing",
                   "ssl_zoo.cli.main", "torch.multiprocessing.Process", "torch.utils.data.DataLoader",
                   "ssl_zoo.export.save_backbone", "ssl_zoo.data.folder.Folder"):  # fmt: skip
        with pytest.raises(UserError):
            check_located({"_target_": target}, "backbone", [])
    check_located({"_target_": "torch.nn.Linear", "inner": [{"_target_": "ssl_zoo.nn.backbones.create"}]}, "backbone", [])


@pytest.mark.parametrize(
    ("word", "hint"), [("metod", "method"), ("trainer.max_epoch", "trainer.max_epochs"), ("dataset.subset", "data.subset"), ("zzz", None)]
)
def test_nearest(word, hint):
    assert nearest(word, ["method", "epochs", "trainer.max_epochs", "trainer.max_steps", "data.subset", "dataset.seed"]) == hint


# ---------------------------------------------------------------------------------------------- the config of a run folder
@pytest.fixture
def saved(tmp_path):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    save_config(compose("train", ["epochs=3"]), run, ["ssl-zoo epochs=3", "ssl-zoo resume\nrun=x"])
    return run


def test_a_run_is_loaded_with_what_a_resume_may_change(saved):
    assert load_run(saved) == compose("train", ["epochs=3"])
    assert commands_of(saved) == ["ssl-zoo epochs=3", "ssl-zoo resume run=x"]
    changed = load_run(saved, ["epochs=9", "trainer.log_every_n_steps=1", "evaluation.knn.k=5", "data.resident=false"])
    assert (changed.epochs, changed.trainer.max_epochs, changed.evaluation.knn.k, changed.data.resident) == (9, 9, 5, False)


def test_a_run_of_before_the_fused_engine_is_loaded(saved):
    config = OmegaConf.load(saved / "config.yaml")
    for view in ("view1", "view2", "local"):
        del config.augment[view].extra, config.augment[view].crop.antialias
    del config.augment.compile
    config.augment.engine = "kornia"
    for key in ("decoded", "workers", "worker_kind"):
        del config.data[key]
    (saved / "config.yaml").write_text(OmegaConf.to_yaml(config))
    old = load_run(saved, ["epochs=9"])
    assert (old.epochs, old.augment.engine, old.data.workers) == (9, "kornia", "auto")
    assert [v.antialias for v in resolve_all(plain(old.augment), 32)] == [False, False]


RESUME_ANSWERS = {
    "epoch=9": "did you mean 'epochs'",
    "epochs=x": "epochs takes",
    "epochs=3,4": "write epochs=value",
    "~epochs": "write epochs=value",
    "optimizer.base_lr=1": "resume cannot change optimizer.base_lr",
    "batch_size=64": "resume cannot change the 256 images per step to 64",
    "trainer.devices=2": "resume cannot change the 256 images per step to 512",
    "trainer.max_epochs=9": "use epochs=",
    "method.hidden_dim=3": "resume cannot change method.hidden_dim",
    "dataset.path=/": "There is no key 'dataset.path'",
}


@pytest.mark.parametrize("word", RESUME_ANSWERS)
def test_what_a_resume_may_not_change(saved, word):
    with pytest.raises(UserError, match=re.escape(RESUME_ANSWERS[word])):
        load_run(saved, [word])


@pytest.mark.parametrize("text", ["", "epochs: 3", "epochs: [", "a: ${nope}", "\x00", "- 1\n- 2", "method: 3"])
def test_a_damaged_config_is_one_sentence(saved, text):
    (saved / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="restore it from a copy"):
        load_run(saved)


def test_a_run_of_an_older_version_gets_the_defaults_of_what_came_later(saved):
    config = OmegaConf.load(saved / "config.yaml")
    del config.trainer["compile"]
    del config["chunk_size"]
    OmegaConf.save(config, saved / "config.yaml")
    assert load_run(saved).trainer.compile is False
    assert load_run(saved).chunk_size is None
    assert load_run(saved, ["chunk_size=8"]).chunk_size == 8
    now = plain(load_run(saved))
    before = {k: v for k, v in now.items() if k != "chunk_size"}
    assert config_hash(before) == config_hash(now) != config_hash({**now, "chunk_size": 8})
    assert not changes(before, now)
    assert changes(before, {**now, "chunk_size": 8}) == {"chunk_size": (None, 8)}


def test_a_run_folder_cannot_vouch_for_itself(saved):
    config = OmegaConf.load(saved / "config.yaml")
    config.trust, config.method._target_ = ["subprocess"], "subprocess.Popen"
    OmegaConf.save(config, saved / "config.yaml")
    with pytest.raises(UserError, match="not from a trusted package"):
        load_run(saved)
    assert load_run(saved, trust=["subprocess"]).trust == ["subprocess"]


def test_no_run_folder(saved):
    with pytest.raises(UserError, match=f"did you mean run={re.escape(str(saved))}"):
        load_run(saved.parent)
    with pytest.raises(UserError, match="not a run folder"):
        load_run("/nowhere")


def test_paths_are_saved_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert compose("train", ["dataset=folder", "dataset.path=photos"]).dataset.path == str(tmp_path / "photos")


def test_the_list_shows_the_users_own_choices(user_conf):
    dirs = user_conf("recipe/mine.yaml", "# @package _global_\n# what it is for\nepochs: 3\n")
    assert choice_names("recipe", dirs)["mine"] == "what it is for"
    assert all(choice_names(g) and all(choice_names(g).values()) for g in ("method", "backbone", "dataset", "recipe", "experiment"))


# ---------------------------------------------------------------------------------------------- the command
@pytest.fixture
def cli(tmp_path):
    return lambda *words: command(*words, cwd=tmp_path, anew=True)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["list"],
        ["--version"],
        ["--cfg", "job"],
        ["list", "backbones"],
        ["list", "suites"],
        ["-h"],
        ["eval", "--help"],
        ["benchmark", "-h"],
    ],
)
def test_quick_answers(cli, words):
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout


BAD = ["metod=dino", "pretran method=simclr", "--cgf job", "eval", "resume run=nowhere", "eval run=. protocol=knn", "list metods",
       "preview images=0", "-m epochs=1,x", "report", "eval run=. protocol=knnn", "''",
       "report runs=nowhere", "benchmark", "benchmark suite=nothing"]  # fmt: skip


@pytest.mark.parametrize("words", BAD)
def test_bad_commands_exit_with_2_and_one_line(cli, words):
    done = cli(*shlex.split(words))
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("ssl-zoo: ")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_nothing_heavy_is_imported_for_an_error():
    code = (
        "import sys\nfrom ssl_zoo.cli import main\n"
        "try: main(['epochs=abc'])\nexcept SystemExit as e: print(e.code, [m for m in ('torch', 'lightning', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "2 []", done.stderr


def test_cfg_job_prints_yaml_that_composes_to_itself(cli):
    done = cli("backbone=vit_s", "epochs=5", "--cfg", "job")
    assert plain(OmegaConf.create(done.stdout)) == plain(compose("train", ["backbone=vit_s", "epochs=5"]))


def test_a_multirun_can_be_looked_at_first(cli, tmp_path):
    done = cli("-m", "seed=0,1", "backbone=resnet18", "--cfg", "job")
    assert [c.seed for c in map(OmegaConf.create, done.stdout.split("---")[1:])] == [0, 1]
    assert "# ssl-zoo seed=1 backbone=resnet18" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_config_keys_are_constructor_arguments():
    import inspect

    import hydra

    for group in ("method", "backbone", "dataset"):
        for file in (conf_dir() / group).glob("*.yaml"):
            node = OmegaConf.load(file)
            signature = inspect.signature(hydra.utils.get_object(node._target_)).parameters
            bases = [k for k in inspect.getmro(hydra.utils.get_object(node._target_)) if issubclass(k, Method)] if group == "method" else []
            known = {**signature, **{k: p for base in bases for k, p in inspect.signature(base).parameters.items()}}
            assert set(node) - {"_target_"} <= set(known), file
            if group == "method":
                needed = {k for k, p in signature.items() if p.kind is not p.VAR_KEYWORD} - {"backbone"}
                assert needed <= set(node), f"{file} lacks {needed - set(node)}"


@pytest.mark.parametrize("recipe", sorted(f.stem for f in (conf_dir() / "recipe").glob("*-fast.yaml")))
def test_a_fast_recipe_is_the_plain_one_but_for_how_fast_it_goes(recipe):
    method, backbone, dataset, _ = recipe.split("-")
    words = [f"method={method}", f"backbone={backbone}", f"dataset={dataset}"]
    usual, fast = (dict(leaves(plain(compose("train", [*words, *more])))) for more in ([], [f"recipe={recipe}"]))
    differ = {k for k in usual if usual[k] != fast[k]}
    assert differ <= {"epochs", "trainer.max_epochs", "batch_size", "trainer.compile", "augment.early_size", "augment.early_share"}
    assert fast["augment.early_size"] < 32
    assert fast["epochs"] < usual["epochs"]


def test_what_is_kept_of_a_composition_is_neither_changed_nor_out_of_date(tmp_path):
    before = compose("train", ["method=byol"])
    wanted = plain(before)
    before.method.momentum, before.optimizer.name = 0.5, "other"
    assert plain(compose("train", ["method=byol"])) == wanted
    file = tmp_path / "method" / "mine.yaml"
    file.parent.mkdir()
    text = (ROOT / "conf/method/simclr.yaml").read_text()
    for width in (64, 96):
        file.write_text(re.sub(r"hidden_dim: \S+", f"hidden_dim: {width}", text))
        assert compose("train", ["method=mine", "recipe=none"], [str(tmp_path)]).method.hidden_dim == width
    assert compose("train", ["method=simclr", "recipe=none"]).method.hidden_dim not in (64, 96)
