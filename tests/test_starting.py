"""Towers that start from weights, locked or not (LiT), and finished runs for other libraries."""

import json
import shutil
import signal
from types import SimpleNamespace

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_resume import SMALL_TEXT, go, same_end, state
from test_resume import WORDS as RUN

from ssl_zoo.cli import main
from ssl_zoo.export import save_backbone
from ssl_zoo.methods.clip import CLIP
from ssl_zoo.methods.siglip import SigLIP
from ssl_zoo.nn.backbones import tiny
from ssl_zoo.nn.text import tokenize
from ssl_zoo.starting import start_towers

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = {"width": 16, "heads": 2, "layers": 1, "context": 8}
DATA = SimpleNamespace(mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25))
ABOUT = {"image_size": 32, "mean": list(DATA.mean), "std": list(DATA.std)}


def step(method):
    tokens, _ = tokenize(["a", "b", "c", "d"], 8)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    method.step([images], {"tokens": tokens})["loss"].backward()


def moved(net):
    """A backbone whose weights and statistics are not those of its start."""
    net.train()(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(5)))
    return net


# ------------------------------------------------------------------------------------ a locked tower
@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("mode", ["as made", "train", "eval and train"])
def test_a_locked_tower_stays_bit_for_bit_and_has_no_gradient(chunk_size, mode):
    method = SigLIP(tiny(32), 8, TEXT, lock_image=True, chunk_size=chunk_size)
    if mode != "as made":  # as Lightning leaves it
        method.eval().train() if mode == "eval and train" else method.train()
    before = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        step(method)
        optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in method.backbone.state_dict().items())
    assert all(p.grad is None for p in method.backbone.parameters())
    assert all(p.grad is not None for p in [*method.project.parameters(), *method.text.parameters(), method.log_scale])
    assert not any(m.training for m in method.backbone.modules())
    assert all(m.training for m in method.text.modules())
    free = SigLIP(tiny(32), 8, TEXT)
    step(free)
    assert all(p.grad is not None for p in free.backbone.parameters())
    assert free.backbone.training


# ------------------------------------------------------------------------------------ what it starts from
def test_towers_start_from_what_a_run_left(tmp_path, capsys):
    other = SigLIP(moved(tiny(32)), 8, TEXT)
    other.log_scale.data.fill_(1.5)
    (tmp_path / "run").mkdir()
    save_backbone(other.backbone, tmp_path / "run" / "backbone.safetensors", ABOUT)
    save_backbone(other, tmp_path / "run" / "towers.safetensors", ABOUT)
    run, file = str(tmp_path / "run"), str(tmp_path / "run" / "backbone.safetensors")
    for image, text in (
        (run, None),
        (file, None),
        (str(tmp_path / "run" / "towers.safetensors"), None),
        (None, run),
        (run, run),
        (file, run),
    ):
        torch.manual_seed(9)
        method = SigLIP(tiny(32), 8, TEXT, image_weights=image, text_weights=text)
        start_towers(method, DATA)
        told = capsys.readouterr().out

        def same(part, method=method):
            ours, theirs = method.get_submodule(part).state_dict(), other.get_submodule(part).state_dict()
            return all(torch.equal(v, theirs[k]) for k, v in ours.items())

        assert (same("backbone"), same("text")) == (image is not None, text is not None), (image, text)
        assert same("project") == (image == text == run)  # which only fits both towers of one run
        assert (method.log_scale.item() == 1.5) == (image == text == run)
        assert ("image tower " in told, "text tower " in told) == (image is not None, text is not None)
        assert "normalised by" not in told


def test_other_normalisation_and_an_untrained_locked_tower_are_said(tmp_path, capsys):
    save_backbone(tiny(32), tmp_path / "w.safetensors", {**ABOUT, "mean": [0.485, 0.456, 0.406]})
    start_towers(CLIP(tiny(32), 8, TEXT, image_weights=str(tmp_path / "w.safetensors")), DATA)
    told = capsys.readouterr().out
    assert "trained on images normalised by mean and deviation 0.485, 0.456, 0.406 and 0.300, 0.200, 0.250; here they are by 0.400" in told
    save_file(tiny(32).state_dict(), tmp_path / "plain.safetensors")
    start_towers(CLIP(tiny(32), 8, TEXT, image_weights=str(tmp_path / "plain.safetensors"), lock_image=True), DATA)
    assert "normalised" not in capsys.readouterr().out
    start_towers(CLIP(tiny(32), 8, TEXT, lock_image=True), DATA)
    assert "locked as it was initialised, untrained" in capsys.readouterr().out


def said(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("method.image_weights=nowhere", "method.image_weights=nowhere is neither a finished run nor a file of weights: check the path"),
        ("method.image_weights=.", "is neither a finished run nor a file"),
        ("method.text_weights=.", "is neither a finished run of a method with words nor a file"),
        ("method.image_weights=true", "method.image_weights takes null or a path"),
        ("method.lock_image=perhaps", "method.lock_image"),
    ],
)
def test_wrong_weights_are_said_before_any_work(tmp_path, monkeypatch, capsys, word, answer):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ssl_zoo.launch.prepare", lambda *a: pytest.fail("work has begun"))
    assert answer in said(["method=clip", word], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_locked_run_needs_its_weights_once(tmp_path):
    """Killed and resumed after the weights are gone: bit for bit the run that was not; with accumulation, chunks and DDP."""
    code, told = go(tmp_path, *RUN, "method=simclr", "method.hidden_dim=32", "epochs=1", "run=first")
    assert code == 0, told
    lit = [*RUN, "method=siglip", "optimizer=adamw", *SMALL_TEXT, "trainer.accumulate_grad_batches=2", "chunk_size=5",
           "method.lock_image=true"]  # fmt: skip
    start = "method.image_weights=first"
    code, told = go(tmp_path, *lit, start, "run=whole")
    assert code == 0, told
    assert "image tower   first/backbone.safetensors\n" in told
    assert go(tmp_path, *lit, start, "checkpoint.every_n_steps=2", "run=cut", kill_at=9)[0] == -signal.SIGKILL
    ddp = [*lit, "method.image_weights=first/backbone.safetensors", "trainer.strategy=ddp", "run=ddp"]
    code, told = go(tmp_path, *ddp)
    assert code == 0, told
    shutil.move(tmp_path / "first", tmp_path / "kept")
    code, told = go(tmp_path, "resume", "run=cut")
    assert code == 0, told
    assert "image tower" not in told
    same_end(tmp_path / "whole", tmp_path / "cut")
    code, told = go(tmp_path, *lit, start, "checkpoint.every_n_steps=2", "run=cut", "resume=auto")
    assert code == 0, told
    assert "has finished its 2 epochs" in told
    first, whole, ddp = (
        load_file(tmp_path / name) for name in ("kept/backbone.safetensors", "whole/towers.safetensors", "ddp/towers.safetensors")
    )
    assert all(torch.equal(v, whole[f"backbone.{k}"]) for k, v in first.items())  # parameters and running statistics
    assert whole.keys() == ddp.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(ddp[key], tensor, rtol=1e-5, atol=1e-6)
    saved = state(tmp_path / "whole")
    trained = [k for k in saved["state_dict"] if not k.startswith("backbone.")]
    assert len(saved["optimizer_states"][0]["state"]) == len(trained)
    code, told = go(tmp_path, *lit, start, "run=again")
    assert code == 2
    assert "method.image_weights=first is neither a finished run" in told
    assert not (tmp_path / "again").exists()


# ------------------------------------------------------------------------------------ export
@pytest.mark.slow
@torch.no_grad()
def test_export_and_what_it_refuses(tmp_path, monkeypatch, capsys):
    tower = ["backbone=vit_t", "backbone.kwargs={depth: 2, embed_dim: 32, num_heads: 2}"]
    words = [*(w for w in RUN if w not in ("backbone=tiny", "epochs=2")), *tower, "epochs=1"]
    code, told = go(tmp_path, *words, "method=siglip", *SMALL_TEXT, "run=mine")
    assert code == 0, told
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["export", "run=mine", "format=open_clip", "out=theirs"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert sorted(f.name for f in (tmp_path / "theirs").iterdir()) == ["open_clip_config.json", "open_clip_model.safetensors"]
    assert 'load          open_clip.create_model_and_transforms("local-dir:theirs")' in told
    theirs, _, _ = open_clip.create_model_and_transforms("local-dir:theirs")
    towers = load_file("mine/towers.safetensors")
    assert theirs.logit_bias.item() == towers["bias"].item()
    assert torch.equal(theirs.text.token_embedding.weight, towers["text.net.token_embedding.weight"])
    about = json.loads((tmp_path / "theirs" / "open_clip_config.json").read_text())["preprocess_cfg"]
    assert about["size"] == 32

    assert "out=theirs is not empty: choose a new folder" in said(["export", "run=mine", "format=open_clip", "out=theirs"], capsys)
    assert "out=mine/config.yaml is a file" in said(["export", "run=mine", "format=open_clip", "out=mine/config.yaml"], capsys)
    assert "There is no format 'open_klip'; did you mean 'open_clip'?" in said(["export", "run=mine", "format=open_klip"], capsys)
    assert "format is needed: add format=" in said(["export", "run=mine"], capsys)
    assert "export needs a run folder" in said(["export", "format=open_clip"], capsys)
    assert "run=nowhere is not a run folder" in said(["export", "run=nowhere", "format=open_clip"], capsys)
    file = tmp_path / "mine" / "towers.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "towers.safetensors cannot be read" in said(["export", "run=mine", "format=open_clip", "out=o"], capsys)
    save_backbone(tiny(32), file, ABOUT)
    assert "do not belong to this backbone" in said(["export", "run=mine", "format=open_clip", "out=o"], capsys)
    file.unlink()
    assert "has no towers.safetensors yet: let the run finish, or continue it with ssl-zoo resume run=mine" in said(
        ["export", "run=mine", "format=open_clip", "out=o"], capsys
    )
    config = tmp_path / "mine" / "config.yaml"
    text = config.read_text()
    config.write_text(
        text[: text.index("method:")] + "method: {_target_: ssl_zoo.methods.simclr.SimCLR}\n" + text[text.index("backbone:") :]
    )
    assert "export format=open_clip needs a method with words, but run=mine was trained with SimCLR" in said(
        ["export", "run=mine", "format=open_clip", "out=o"], capsys
    )
    assert not (tmp_path / "o").exists()
