"""`ssl-zoo export`: what other libraries load computes what the run does, and nothing is written that does not."""

import hashlib
import json
import re
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from conftest import command, finished
from timm.data import create_transform, resolve_model_data_config

import ssl_zoo
from ssl_zoo import formats
from ssl_zoo.config import compose
from ssl_zoo.errors import UserError
from ssl_zoo.export import header, save_backbone
from ssl_zoo.exporting import FORMATS, _differences, check_export, export
from ssl_zoo.nn.torchvision_names import torchvision_twin

pytestmark = pytest.mark.usefixtures("one_thread")
BACKBONES = [f for f in FORMATS if f != "open_clip"]


def exported(run, form, *words):
    """The folder that the command writes, and its lines."""
    if form == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    config = compose("export", [f"run={run}", f"format={form}", *words])
    found = check_export(config)
    return found[2], export(config, *found)


def loaded(lines):
    """The network that the printed lines make, in a namespace of their own."""
    start = next(i for i, line in enumerate(lines) if line.startswith("load "))
    code = [lines[start].removeprefix("load").strip()]
    code += [line.strip() for line in lines[start + 1 :] if line.startswith("    ")]
    names = {}
    exec("\n".join(code), names)
    return names["net"]


@torch.no_grad()
def assert_same(run, net):
    ours = ssl_zoo.load(run)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, ours.image_size, ours.image_size)
        wanted = ours(x)
        torch.testing.assert_close(net(x), wanted, rtol=0, atol=1e-5 * max(1, float(wanted.abs().max())))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs by their words, each made once."""
    made, root = {}, tmp_path_factory.mktemp("runs")

    def of(*words):
        if words not in made:
            made[words] = finished(root / f"run{len(made)}", *words)
        return made[words]

    return of


SMALL = [("backbone=resnet18",), ("method=dino", "backbone=vit_t")]
LARGE = [("backbone=vit_s",), ("backbone=convnext_t",)]  # at 224 px: benchmarks/export.py


@pytest.mark.parametrize("words", [*SMALL, *(pytest.param(w, marks=pytest.mark.slow) for w in LARGE)], ids=" ".join)
@pytest.mark.parametrize("form", BACKBONES)
def test_what_is_loaded_elsewhere_computes_the_same(runs, tmp_path, form, words):
    run = runs(*words)
    out, lines = exported(run, form, f"out={tmp_path / 'out'}")
    assert_same(run, loaded(lines))
    told = json.loads((out / "export.json").read_text())
    assert set(told["files"]) == {f.name for f in out.iterdir()} - {"export.json", "README.md"}
    for name, about in told["files"].items():
        assert about["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
    assert {k: v["images"] for k, v in told["difference"].items()} == {"random images": 4, "test images": 8}
    assert all(0 <= v["largest"] <= 1e-5 * v["largest_feature"] for v in told["difference"].values())
    net = ssl_zoo.load(run)
    assert told["preprocessing"]["image_size"] == net.image_size
    assert tuple(told["preprocessing"]["mean"]) == net.mean
    assert not list(tmp_path.glob(".*"))  # nothing is left beside it


@pytest.mark.parametrize("form", ["safetensors", "timm", "huggingface"])
def test_ssl_zoo_loads_what_it_exported(runs, tmp_path, form):
    run = runs("backbone=resnet18")
    out, _ = exported(run, form, f"out={tmp_path / 'out'}")
    assert_same(run, ssl_zoo.load(out))


def test_timm_and_torchvision_take_a_network_with_its_own_stem_as_it_is(runs, tmp_path):
    import torchvision

    run = runs("backbone=resnet18", "dataset.image_size=96")
    out, _ = exported(run, "timm", f"out={tmp_path / 'timm'}")
    assert_same(run, timm.create_model("resnet18", num_classes=0, checkpoint_path=str(out / "model.safetensors")).eval())
    out, _ = exported(run, "torchvision", f"out={tmp_path / 'torchvision'}")
    net = torchvision.models.resnet18()
    net.fc = torch.nn.Identity()
    net.load_state_dict(torch.load(out / "model.pth", weights_only=True), strict=True)
    assert_same(run, net.eval())


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet50", 64),
        ("wide_resnet50_2", 96),
        ("resnext50_32x4d", 64),
        ("densenet121", 64),
        ("vit_small_patch32_224", 224),
        ("convnext_small", 96),
    ],
)
@pytest.mark.slow
def test_torchvision_has_twins_of_many_networks(name, size):
    from ssl_zoo.nn.backbones import create

    net = create(name, size, stem="model").eval()
    twin = torchvision_twin(net, name, size)
    import torchvision

    theirs = getattr(torchvision.models, twin.make)(**twin.options)
    theirs.set_submodule(twin.head, torch.nn.Identity())
    theirs.load_state_dict(twin.state, strict=True)
    largest, scale = formats.difference(net, theirs.eval(), torch.randn(3, 3, size, size))
    assert largest <= 1e-5 * max(1, scale)


def test_a_folder_for_the_hub_says_all(runs, tmp_path):
    run = runs("method=dino", "backbone=vit_t")
    (run / "eval").mkdir(exist_ok=True)
    out, lines = exported(run, "huggingface", f"out={tmp_path / 'hub'}", "repo=me/model", "license=apache-2.0")
    assert lines[-1].split()[-5:] == ["push", "hf", "upload", "me/model", str(out)]
    net = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    ours = ssl_zoo.load(run)
    data = resolve_model_data_config(net)
    assert (tuple(data["input_size"]), data["interpolation"], data["crop_pct"]) == ((3, 32, 32), "bicubic", 1.0)
    assert (tuple(data["mean"]), tuple(data["std"])) == (ours.mean, ours.std)
    from PIL import Image

    picture = Image.effect_noise((60, 60), 60).convert("RGB")  # a wide one is resized and cropped in another order, and rounded between
    theirs = create_transform(**data, is_training=False)(picture)
    torch.testing.assert_close(theirs, ours.transform(picture), rtol=0, atol=1e-5)
    _, front, card = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised", "image-feature-extraction", "ssl_zoo", "timm"],
        "license": "apache-2.0",
    }
    summary = json.loads((run / "summary.json").read_text())
    for said in (
        f"| kNN top-1 | {summary['final']['knn_top1']} | 16.9 | 43.5 |",
        "k=20, votes exp(s/0.07)",
        "| seed | 0 |",
        "Emerging Properties",
        "apache-2.0.",
        "timm.create_model('hf-hub:me/model', pretrained=True)",
        f"{summary['data']['train']:,} images",
    ):
        assert said in card, said


def test_a_card_is_text_whatever_a_run_folder_holds(runs, tmp_path):
    run = finished(tmp_path / "run", "backbone=resnet18")
    summary = json.loads((run / "summary.json").read_text())
    name = "a|b\n# heading\x1b[31m ![t](http://evil/x.png) <img src=x> [a](http://b)"
    (run / "summary.json").write_text(json.dumps({**summary, "name": name, "command": "ssl-zoo\n```\nrm -rf x", "evaluation": "x\n---\ny"}))
    out, lines = exported(run, "huggingface")
    card = (out / "README.md").read_text()
    assert "\x1b" not in card
    assert "\n# heading" not in card
    assert not re.search(r"(?<!\\)(<img|\[a\]|!\[t)", card)
    assert card.count("```") % 2 == 0
    assert "licence" in lines[-1]
    assert "# hf download YOUR-NAME/run --local-dir run" in card
    (run / "eval" / "x.json").mkdir(parents=True)
    for damaged in (summary, {}, {**summary, "parameters": 10**400}):
        (run / "summary.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match="model card"):
            exported(run, "huggingface", f"out={tmp_path / 'other'}")
        assert not (tmp_path / "other").exists()


def test_what_differs_is_not_written(runs, tmp_path, monkeypatch):
    run = runs("backbone=resnet18")
    right = formats._filled
    monkeypatch.setattr(formats, "_filled", lambda *args: lambda x: right(*args)(x) + 1e-3)
    with pytest.raises(UserError, match="computes other features than the run"):
        exported(run, "timm", f"out={tmp_path / 'out'}")
    monkeypatch.setattr(formats, "_filled", lambda *args: lambda x: right(*args)(x) * float("nan"))
    with pytest.raises(UserError, match="computes other features than the run"):
        exported(run, "timm", f"out={tmp_path / 'out'}")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_one_sentence(runs, tmp_path):
    tiny, regnet = runs("backbone=tiny"), runs("backbone=timm", "backbone.name=regnety_002")
    clip_like = runs("backbone=timm", "backbone.name=vit_tiny_patch16_224", "backbone.kwargs={pre_norm:true}", "dataset.image_size=32")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for run, form, words, said in (
        (tiny, "timm", (), "timm has no network like this run's backbone"),
        (tiny, "torchvision", (), "torchvision has no network like this run's backbone"),
        (regnet, "torchvision", (), "torchvision has no network like timm's regnety_002"),
        (clip_like, "torchvision", (), "torchvision has no network of this shape"),
        (tiny, "tim", (), "did you mean 'timm'"),
        (tiny, "onnx", (f"out={tmp_path / 'full'}",), "not empty"),
        (tiny, "safetensors", ("out=.",), "cannot be replaced by a finished folder"),
        (tiny, "huggingface", ("repo='me/x y'",), "is no name of a repository"),
        (tiny, "safetensors", (f"out={tmp_path / 'full' / 'x' / 'y'}",), "cannot be written"),
        (tiny, "open_clip", (), "needs a method with words"),
        (tmp_path, "timm", (), "is not a run folder"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            exported(run, form, *words)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text((tiny / "config.yaml").read_text())
    with pytest.raises(UserError, match=r"has no backbone\.safetensors yet"):
        exported(tmp_path / "begun", "safetensors")


def test_options_of_timm_come_along(runs, tmp_path):
    run = runs("backbone=timm", "backbone.name=vit_tiny_patch16_224", "backbone.kwargs={class_token:false,global_pool:avg}")
    for form in ("timm", "huggingface"):
        _, lines = exported(run, form, f"out={tmp_path / form}")
        assert_same(run, loaded(lines))


def test_without_figures_random_images_alone_are_compared(tmp_path):
    run = finished(tmp_path / "run", "backbone=tiny")
    whole = (run / "figures" / "data.npz").read_bytes()
    for i, damaged in enumerate((b"no archive", b"", whole[: len(whole) // 2])):
        (run / "figures" / "data.npz").write_bytes(damaged)
        out, _ = exported(run, "safetensors", f"out={tmp_path / str(i)}")
        assert list(json.loads((out / "export.json").read_text())["difference"]) == ["random images"]


def test_headers_of_weights_are_no_code(tmp_path, monkeypatch):
    """What is written into a weights file by somebody else is neither run, nor printed as code, nor read from the environment."""
    monkeypatch.setenv("MY_SECRET", "hunter2")
    run = finished(tmp_path / "run", "backbone=resnet18")
    net, known = ssl_zoo.load(run).backbone, header(run / "backbone.safetensors")
    own = known["backbone"]
    for backbone, said in (
        ({**own, "kwargs": {"a=__import__('os').system('true'), b": None}}, "is no name of an argument"),
        ({**own, "kwargs": {"in_chans=3)#": 3}}, "is no name of an argument"),
        ({**own, "stem": "${oc.env:MY_SECRET}"}, r"\$\{"),
        ({**own, "name": 5}, "timm has no model '5'"),
        ({**own, "kwargs": 5}, "describes no backbone"),
        ({"a": 1}, "does not say what it is of"),
        ("x", "does not say what it is of"),
    ):
        save_backbone(net, run / "backbone.safetensors", {**known, "backbone": backbone})
        with pytest.raises(UserError, match=said):
            exported(run, "timm")
    for key, value in (("image_size", 10**9), ("image_size", "32"), ("std", [0.0, 1.0, 1.0]), ("mean", [float("nan")] * 3)):
        save_backbone(net, run / "backbone.safetensors", {**known, key: value})
        with pytest.raises(UserError, match="does not say what it is of"):
            ssl_zoo.load(run)
    assert not (run / "timm").exists()


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e4])
def test_features_are_held_to_their_own_size(runs, tmp_path, scale):
    class Scaled(torch.nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = by

        def forward(self, x):
            return self.by * x.flatten(1)[:, :4]

    run = runs("backbone=tiny")
    net = SimpleNamespace(backbone=Scaled(scale), image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    found = _differences(net, lambda: Scaled(scale * (1 + 1e-6)), run, "x")
    assert set(found) == {"random images", "test images"}
    for wrong in (0.0, scale * 1.001):
        with pytest.raises(UserError, match="computes other features"):
            _differences(net, lambda wrong=wrong: Scaled(wrong), run, "x")
    with pytest.raises(UserError, match="has no network of this shape"):
        _differences(net, lambda: {}["nothing"], run, "x")


def test_the_command(tmp_path):
    finished(tmp_path / "run", "backbone=tiny")
    done = command("export", "run=run", "format=torch_export", "out=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "differ by" in done.stdout
    again = command("export", "run=run", "format=torch_export", "out=out", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (2, "ssl-zoo: out=out is not empty: choose a new folder.\n")
