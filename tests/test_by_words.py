"""Runs with words, judged through the command."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image
from safetensors.torch import load_file, save_file

from ssl_zoo import verbs
from ssl_zoo.build import build_data, build_method, build_tokens, data_for
from ssl_zoo.classify import classify_config
from ssl_zoo.cli import main
from ssl_zoo.config import compose, plain
from ssl_zoo.data.captions import Counts
from ssl_zoo.data.images import Images
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation import feature_cache
from ssl_zoo.evaluation.words_retrieval import distinct
from ssl_zoo.export import save_backbone
from ssl_zoo.nn.numerics import unit
from ssl_zoo.nn.text import tokenize
from ssl_zoo.reports.collect import read_run
from ssl_zoo.reports.evaluations import rows
from ssl_zoo.saved import load_run, save_config
from ssl_zoo.words import towers_of

CPU = torch.device("cpu")
HELD = ["red star", "blue ring", "orange square"]
SMALL = ["experiment=smoke", "dataset.image_size=16", "dataset.train_size=96", "dataset.test_size=48", "batch_size=32", "trainer=cpu",
         "epochs=1", "method.text={width: 32, heads: 2, layers: 1, context: 24}", "method.embed_dim=16", "dataset.labels=colour_shape",
         f"dataset.held_out={HELD}", "evaluation.linear.max_iter=2", "evaluation.linear.l2=[0.01]", "augment.compile=false"]  # fmt: skip
pytestmark = pytest.mark.usefixtures("one_thread")


def ssl_zoo(*words):
    """The exit code of a command, run in this process."""
    with pytest.raises(SystemExit) as ended:
        main([*words])
    return ended.value.code


def untrained(folder, *words):
    """A finished run of weights as they were drawn."""
    config = compose("train", list(words))
    data = build_data(config)
    torch.manual_seed(0)
    method = build_method(config, data)
    (folder / "checkpoints").mkdir(parents=True)
    save_config(config, folder, [])
    about = {"image_size": data.train.image_size, "mean": data.mean, "std": data.std, "backbone": plain(config.backbone), "epochs": 1}
    save_backbone(method.backbone, folder / "backbone.safetensors", about)
    if hasattr(method, "text"):
        save_backbone(method, folder / "towers.safetensors", about)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by method: CLIP's trained, the others as they began; and pictures."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SSL_ZOO_CACHE", str(folder / "cache"))
        assert ssl_zoo("method=clip", *SMALL, "run=clip") == 0
        untrained(folder / "siglip", "method=siglip", *SMALL)
        untrained(folder / "simclr", "method=simclr", "experiment=smoke", "dataset.train_size=32", "dataset.test_size=16")
    (folder / "red.png").write_bytes(picture((250, 10, 10)))
    (folder / "blue, light.jpg").write_bytes(picture((90, 90, 250), form="JPEG"))
    (folder / "notes.txt").write_text("a photo of a cat, they say")
    return folder


@pytest.fixture
def here(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


def by_hand(run, sentences, images=None):
    """Unit embeddings of the test images and of sentences, straight from the method of a run."""
    config = load_run(run)
    data = build_data(config)
    method = build_method(config, data)
    method.load_state_dict(load_file(run / "towers.safetensors"))
    method.eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (data.mean, data.std))
    x = (data.test.pixels if images is None else images).float() / 255
    with torch.no_grad():
        _, image, text = method.meet((x - mean) / std, tokenize(sentences, 24)[0])
    return unit(image), unit(text), data, method


# ---------------------------------------------------------------------------------------------- training
def test_captions_are_counted_in_the_summary(here, capsys):
    counts = json.loads((here / "clip" / "summary.json").read_text())["data"]["captions"]
    assert counts == {"images": 96, "captions": 96, "empty": 0, "without": 0, "cut": 0}
    config = load_run(here / "clip")
    data = build_data(config)
    said = [["&nbsp;", "a star"], [], ["star " * 40, "a ring"]] + [["a ring"]] * (len(data.train) - 3)
    data = data_for(config, replace(data, train=replace(data.train, captions=said)))
    assert data.captions == Counts(images=95, captions=96, empty=1, without=1)
    assert build_tokens(build_method(config, data), data.train).cut == 1
    assert "captions      1 of 96 are cut at 24 tokens" in capsys.readouterr().out
    shared = ["a ring", "star " * 40]
    data = replace(data, train=replace(data.train, captions=[shared] * len(data.train)))
    assert build_tokens(build_method(config, data), data.train).cut == 95


# ---------------------------------------------------------------------------------------------- eval
def test_zero_shot_of_a_run(here, capsys):
    before = (here / "clip" / "towers.safetensors").read_bytes()
    words = ["run=clip", "protocol=zero_shot", "protocol.templates=['a {}.', 'some large {} at the top']"]
    assert ssl_zoo("eval", *words) == 0
    told = capsys.readouterr().out
    (file,) = (here / "clip" / "eval").glob("zero_shot-*.json")
    r = json.loads(file.read_text())
    sentences = [s for c in r["classes"] for s in (f"a {c}.", f"some large {c} at the top")]
    image, text, data, _ = by_hand(here / "clip", sentences)
    weights = unit(text.view(80, 2, -1).mean(1))
    predicted = (image @ weights.T).argmax(1)
    right = predicted == data.test.labels
    assert r["top1"] == pytest.approx(100 * right.float().mean().item())
    alone = [100 * ((image @ text[t::2].T).argmax(1) == data.test.labels).float().mean().item() for t in (0, 1)]
    assert r["each_template_top1"] == pytest.approx(alone)
    assert r["one_template_top1"] == pytest.approx(alone[0])
    apart = torch.tensor([r["classes"][y] in HELD for y in data.test.labels.tolist()])
    assert r["held_out"] == [c for c in r["classes"] if c in HELD]
    assert r["seen_images"] + r["held_out_images"] == 48
    assert r["held_out_images"] == int(apart.sum()) > 0
    assert r["seen_top1"] == pytest.approx(100 * right[~apart].float().mean().item())
    assert r["chance_top1"] == 1.25
    for part in ("top-1", "by chance", "1.2 %", "first of 2 alone", "seen", "held out"):
        assert part in told, part
    assert (here / "clip" / "towers.safetensors").read_bytes() == before
    read = read_run(here / "clip")
    assert read.judged == {}  # of other settings than the usual, but in the page
    assert rows(r)[0][0] == "zero_shot"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clip", "siglip"])
def test_colours_are_told_by_their_names_after_a_short_training(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_ZOO_CACHE", str(tmp_path / "cache"))
    words = [w for w in SMALL if not w.startswith(("dataset.", "epochs", "batch_size"))]
    shapes = ["dataset.labels=colour", "dataset.image_size=16", "dataset.train_size=1024", "dataset.test_size=256"]
    code = ssl_zoo(f"method={method}", *words, *shapes, "epochs=5", "batch_size=64", "optimizer.base_lr=2e-3",
                   "evaluation.every_n_epochs=5", "evaluation.baselines=false", "run=run")  # fmt: skip
    assert code == 0
    assert ssl_zoo("eval", "run=run", "protocol=zero_shot") == 0
    found = json.loads((tmp_path / "run/eval/zero_shot.json").read_text())
    assert found["chance_top1"] == 12.5
    assert found["top1_interval"][0] > 20


def test_the_usual_zero_shot_has_its_columns(here):
    from ssl_zoo.reports.collect import _results

    found = {"protocol": "zero_shot", "top1": 5.0, "top5": 6.0, "seen_top1": 7.0, "held_out_top1": 8.0}
    assert {k: v.value for k, v in _results("zero_shot", found).items()} == {
        "zero_shot_top1": 5.0, "zero_shot_top5": 6.0, "zero_shot_seen_top1": 7.0, "zero_shot_held_out_top1": 8.0}  # fmt: skip
    cross = {"protocol": "retrieval", "results": [{"direction": "image to text", "top1": 3.0}, {"direction": "text to image", "top1": 4.0}]}
    assert {k: v.value for k, v in _results("retrieval", cross).items()} == {
        "retrieval image to text_top1": 3.0, "retrieval text to image_top1": 4.0}  # fmt: skip


def test_retrieval_of_a_run_is_between_images_and_words(here, capsys):
    assert ssl_zoo("eval", "run=clip", "protocol=retrieval") == 0
    r = json.loads((here / "clip" / "eval" / "retrieval.json").read_text())
    assert (r["settings"]["between"], r["images"], r["captions"]) == ("words", 48, 48)
    config = load_run(here / "clip")
    captions = [c[0] for c in build_data(config).test.captions]
    image, text, _, _ = by_hand(here / "clip", captions)
    place = (image @ text.T).argsort(1, descending=True)
    alike = [{j for j, c in enumerate(captions) if c == own} for own in captions]
    if len(set(captions)) == len(captions):
        assert r["results"][0]["recall_at_5"] == pytest.approx(
            100 * np.mean([bool(alike[i] & set(place[i, :5].tolist())) for i in range(48)])
        )
    back = (text @ image.T).argsort(1, descending=True)
    assert r["results"][1]["recall_at_5"] == pytest.approx(100 * np.mean([bool(alike[i] & set(back[i, :5].tolist())) for i in range(48)]))
    assert "image to text" in capsys.readouterr().out
    assert [line[5] for line in rows(r)][1].startswith("direction image to text")


@pytest.mark.slow
def test_features_of_a_layer_are_compared_with_images(here, capsys):
    """`between=auto` leaves words alone where the features asked for do not meet them."""
    assert ssl_zoo("eval", "run=clip", "protocol=retrieval", "features.layer=layer1", "out=layers") == 0
    (file,) = (here / "layers" / "eval").glob("*.json")
    assert "map" in json.loads(file.read_text())
    assert ssl_zoo("eval", "run=clip", "protocol=retrieval", "net=teacher", "out=layers") == 2
    assert "teacher" in capsys.readouterr().err


def test_retrieval_between_images_is_as_it_was(here, capsys):
    assert ssl_zoo("eval", "run=clip", "protocol=retrieval", "protocol.between=images", "features.cache=false") == 0
    assert ssl_zoo("eval", "run=simclr", "protocol=retrieval") == 0
    r = json.loads((here / "simclr" / "eval" / "retrieval.json").read_text())
    assert r["settings"]["between"] == "images"
    assert {"map", "map_at_r", "recall_at_1"} <= set(r)
    capsys.readouterr()


def test_an_evaluation_that_changes_the_words_is_an_error(here, monkeypatch):
    from ssl_zoo.words import Towers

    real = Towers.sentences

    def spoils(self, *args):
        with torch.no_grad():
            self.text.net.token_embedding.weight[0, 0] += 1
        return real(self, *args)

    monkeypatch.setattr(Towers, "sentences", spoils)
    with pytest.raises(RuntimeError, match="has changed"):
        main(["eval", "run=clip", "protocol=retrieval", "features.cache=false"])


def test_sentences_are_read_once_and_cut_at_the_context(here):
    subject = towers_of(here / "siglip", load_run(here / "siglip"), None, CPU)
    towers = subject.backbone
    long = "one two three four five six seven eight nine ten " * 4
    some = ["a red star", long, "a red star", "b", long + "more"]
    ids, cut = towers.read(some)
    assert torch.equal(ids, tokenize(some, 24)[0])
    assert cut.tolist() == [False, True, False, False, True]
    found, number = towers.sentences(some, batch_size=2)
    assert number == 2
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    assert towers.sentences([])[0].shape == (0, 16)
    exactly = " ".join(["star"] * 22)  # with begin and end, 24 tokens
    assert towers.read([exactly, exactly + " star"])[1].tolist() == [False, True]
    assert feature_cache.weights_hash(towers) != feature_cache.weights_hash(towers.backbone)


def test_captions_of_one_wording_and_of_none():
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    readable, captions, pairs = distinct(Images(pixels, None, None, 8, [["a", " b "], [], ["b", " "], ["a", "a"]]))
    assert (readable, captions) == ([0, 1, 2, 3], ["a", "b"])
    assert pairs.T.tolist() == [[0, 0], [0, 1], [2, 1], [3, 0], [3, 0]]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run=simclr", "protocol=zero_shot"], "protocol=zero_shot needs a method with words, but run=simclr was trained with SimCLR"),
        (["run=simclr", "protocol=retrieval", "protocol.between=words"], "needs a method with words"),
        (["weights=timm/resnet18", "dataset=shapes", "protocol=zero_shot"], "weights from elsewhere have none"),
        (["run=clip", "protocol=zero_shot", "protocol.templates=nowhere.txt"], "protocol.templates=nowhere.txt is neither"),
        (["run=clip", "protocol=zero_shot", "protocol.templates=['a cat']"], "must hold {} once"),
        (["run=clip", "protocol=zero_shot", "protocol.templates=[]"], "protocol.templates takes null, photo"),
        (["run=clip", "protocol=zero_shot", "protocol.classes=[cat,dog]"], "holds 2 names, but the data set has 80 classes"),
        (["run=clip", "protocol=zero_shot", "protocol.classes=nowhere.txt"], "protocol.classes=nowhere.txt is no file"),
        (["run=clip", "protocol=zero_shot", "protocol.classes=[1,2]"], "protocol.classes takes null, a list of names"),
        (["run=clip", "protocol=zero_shot", "features.pool=mean"], "leave net, features.layer"),
        (["run=clip", "protocol=retrieval", "protocol.between=both"], "protocol.between takes auto, images or words"),
        (
            ["run=clip", "protocol=retrieval", "protocol.between=words", "protocol.gallery=train"],
            "protocol.gallery=train is for retrieval between",
        ),
        (["run=clip", "protocol=zero_shot", "dataset=folder", "dataset.path=numbers"], "numbers for its 2 classes, and no names"),
        (
            ["run=clip", "protocol=retrieval", "protocol.between=words", "dataset=folder", "dataset.path=numbers"],
            "needs captions, which the test",
        ),
        (["run=clip", "protocol=zero_shot", "dataset=folder", "dataset.path=numbers", "dataset.labels=shape"], "takes auto, true or false"),
        (["run=clip", "protocol=zero_shot", "dataset=folder", "dataset.path=numbers", "dataset.labels=false"], "the test images have none"),
        (["run=clip", "dataset=shapes", "dataset.labels=auto"], "dataset.labels=auto does not work"),
        (["run=clip", "dataset=shapes", "dataset.held_out=red star"], "dataset.held_out takes a list"),
        (["run=clip", "dataset=shapes", "dataset.held_out=[red stra]"], "did you mean 'red star'"),
    ],
)
def test_what_cannot_be_judged_by_words(here, capsys, words, told):
    for i in range(8):
        file = here / "numbers" / str(i % 2) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (30 * i, 0, 0)).save(file)
    assert ssl_zoo("eval", *words) == 2
    said = capsys.readouterr().err.strip()
    assert told in said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_names_can_be_given_where_the_data_set_has_none(here, capsys):
    test_what_cannot_be_judged_by_words(
        here, capsys, ["run=clip", "protocol=zero_shot", "dataset=folder", "dataset.path=numbers"], "no names"
    )
    (here / "names.txt").write_text("a red thing\na blue thing\n")
    words = ["eval", "run=clip", "protocol=zero_shot", "dataset=folder", "dataset.path=numbers"]
    assert ssl_zoo(*words, "protocol.classes=names.txt", "out=elsewhere") == 0
    (file,) = (here / "elsewhere" / "eval").glob("*.json")
    assert json.loads(file.read_text())["class_names"] == ["a red thing", "a blue thing"]
    assert "same names" not in capsys.readouterr().out
    assert ssl_zoo(*words, "protocol.classes=[thing,Thing]", "out=elsewhere") == 0
    assert "1 of the classes are called as another is: they cannot be told apart" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- towers of strangers
@pytest.mark.slow
def test_towers_that_are_not_whole(here, tmp_path, capsys):
    run = tmp_path / "damaged"
    shutil.copytree(here / "clip", run)
    state = load_file(here / "clip" / "towers.safetensors")  # mapped, so not of the file that is written over
    for make, told in (
        (lambda f: f.write_bytes(b"nothing"), "cannot be read"),
        (lambda f: save_file(state, f), "do not say how images are prepared"),
        (lambda f: save_file(state, f, {"ssl_zoo": '{"image_size": "x", "mean": [0,0,0], "std": [1,1,1]}'}), "do not say how"),
        (lambda f: save_backbone(torch.nn.Linear(2, 2), f, {"image_size": 16, "mean": [0.5] * 3, "std": [0.5] * 3}), "do not belong"),
        (lambda f: f.unlink(), "has no towers.safetensors yet"),
    ):
        make(run / "towers.safetensors")
        assert ssl_zoo("eval", f"run={run}", "protocol=zero_shot") == 2
        assert told in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- classify
def scores(out):
    """{label: score} of the rows of tables that rich has drawn."""
    found = [line.strip("│┃ ").split("│") for line in out.splitlines() if line.startswith("│")]
    return {label.strip(): float(score) for label, score in found}


def test_classify_is_a_softmax_at_the_learned_temperature(here, capsys):
    assert ssl_zoo("classify", "run=clip", "image=red.png", "labels=red, blue,a green ring", "top=2") == 0
    out = capsys.readouterr().out
    pixels = torch.from_numpy(np.asarray(Image.new("RGB", (16, 16), (250, 10, 10)))).permute(2, 0, 1)[None]
    image, text, _, method = by_hand(here / "clip", ["red", "blue", "a green ring"], pixels)
    share = (method.log_scale.exp() * image @ text.T).softmax(1)[0]
    best = share.argsort(descending=True)[:2].tolist()
    names = ["red", "blue", "a green ring"]
    assert scores(out) == {names[i]: pytest.approx(100 * float(share[i]), abs=0.06) for i in best}
    assert list(scores(out)) == [names[i] for i in best]
    assert f"learned temperature {float(1 / method.log_scale.exp()):.4f}" in out
    assert "softmax, %" in out
    assert "red.png" in out


def test_classify_asks_siglip_about_each_label(here, capsys):
    state = load_file(here / "siglip" / "towers.safetensors")
    assert ssl_zoo("classify", "run=siglip", "image=[red.png,'blue, light.jpg']", "labels=red") == 0
    out, err = capsys.readouterr()
    assert (out.count("sigmoid, %"), err) == (2, "")
    pixels = torch.from_numpy(np.asarray(Image.new("RGB", (16, 16), (250, 10, 10)))).permute(2, 0, 1)[None]
    image, text, _, _ = by_hand(here / "siglip", ["red"], pixels)
    logit = state["log_scale"].exp() * float(image @ text.T) + state["bias"]
    assert float(next(line.split("│")[2] for line in out.splitlines() if line.startswith("│"))) == pytest.approx(
        100 * float(logit.sigmoid()), abs=0.06
    )
    assert "need not add up" in out


def test_classify_takes_files_of_labels_templates_and_names_with_commas(here, capsys):
    (here / "labels.txt").write_text("red thing\nblue ${x} thing\n")
    assert ssl_zoo("classify", "run=clip", "image=blue, light.jpg", "labels=labels.txt", "templates=['the {}', 'one {}']") == 0
    assert set(scores(capsys.readouterr().out)) == {"red thing", "blue ${x} thing"}
    assert ssl_zoo("classify", "run=clip", "image=red.png", "labels=a,b", "--cfg", "job") == 0
    said = capsys.readouterr().out
    assert "labels:\n- a\n- b" in said
    assert "image:\n- red.png" in said


def test_a_label_that_is_too_long_is_cut_and_said(here, capsys):
    long = "one two three four five six seven eight nine ten " * 4
    assert ssl_zoo("classify", "run=clip", "image=red.png", f"labels=red,{long}") == 0
    assert "is longer than the 24 tokens of the network" in capsys.readouterr().out
    assert ssl_zoo("classify", "run=clip", "image=red.png", f"labels={long} more,{long} still more") == 2
    assert "read the same to the network: both are cut" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["image=nowhere.png", "labels=a,b", "run=clip"], "image=nowhere.png does not exist"),
        (["image=clip", "labels=a,b", "run=clip"], "image=clip is a folder"),
        (["image=notes.txt", "labels=a,b", "run=clip"], "image=notes.txt is no picture that can be read"),
        (["image=red.png,notes.txt", "labels=a,b", "run=clip"], "image=notes.txt is no picture"),
        (["image=red.png", "labels=", "run=clip"], "classify needs labels"),
        (["image=red.png", "labels=,", "run=clip"], "classify needs labels"),
        (["image=red.png", "labels=[]", "run=clip"], "classify needs labels"),
        (["image=red.png", "run=clip"], "classify needs labels"),
        (["labels=a,b", "run=clip"], "classify needs image"),
        (["image=red.png", "labels=cat,,dog", "run=clip"], "labels holds an empty word (number 2)"),
        (["image=red.png", "labels=cat", "run=clip"], "One label alone gets 100 % from CLIP"),
        (["image=red.png", "labels=cat,dog,cat", "run=clip"], "labels holds 'cat' 2 times"),
        (["image=red.png", "labels=cat,Cat", "run=clip"], "'cat' and 'Cat' read the same"),
        (["image=red.png", "labels=words.txt", "run=clip"], "labels=words.txt is no file"),
        (["image=red.png", "labels=red.png", "run=clip"], "it is not UTF-8"),
        (["image=red.png", "labels=a,b", "labels=c,d", "run=clip"], "labels=... is given 2 times"),
        (["image=red.png", "labels=a,b"], "classify needs a run of clip or siglip"),
        (["image=red.png", "labels=a,b", "run=nowhere"], "run=nowhere is not a run folder"),
        (["image=red.png", "labels=a,b", "run=simclr"], "classify needs a method with words, but run=simclr was trained with SimCLR"),
        (["image=red.png", "labels=a,b", "run=clip", "top=0"], "top takes a whole number"),
        (["image=red.png", "labels=a,b", "run=clip", "templates=[x]"], "must hold {} once"),
        (["image=red.png", "labels=[[a],b]", "run=clip"], "is no plain list"),
        (["image=red.png", "labels=[a", "run=clip"], "with quotes round special characters"),
        (["image=red.png", "labels=a,b", "run=clip", "templates=nowhere.txt"], "templates=nowhere.txt is neither"),
        (["image=red.png", "labels=a,b", "run=clip", "tops=3"], "did you mean 'top'"),
    ],
)
def test_what_cannot_be_classified(here, capsys, words, told):
    assert ssl_zoo("classify", *words) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not said.out


def test_free_text_is_no_grammar():
    for label in ("a${b}", "a\\${b}", "a\\\\${b}", "\\", "$", "${", "x\\"):
        assert plain(classify_config(["image=i.png", "run=r", f"labels={label},z"], []))["labels"] == [label, "z"]


def test_labels_that_hold_nothing_to_the_network():
    class Towers:
        text = torch.nn.Module()
        read = staticmethod(lambda some: (tokenize(some, 24)[0], torch.zeros(len(some), dtype=torch.bool)))

    with pytest.raises(UserError, match="holds no word that the network reads"):
        verbs._wording(Towers(), ["red", "\u200b\x00" if not tokenize(["\u200b\x00"], 24)[0][0, 2] else " "], [["red"], [" "]])
