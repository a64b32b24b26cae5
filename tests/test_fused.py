"""The fused engine, operation by operation, against torchvision on the same parameters; one graph, no host reads, few bytes."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._inductor.graph import GraphLowering
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ssl_zoo.augment import colour
from ssl_zoo.augment.blur import blur
from ssl_zoo.augment.crop import TRIES, Box, draw_box, resample
from ssl_zoo.augment.fused_engine import COLOURS, IN_CACHE, NUMBERS, FusedEngine, equal_parts, make_view
from ssl_zoo.augment.spec import resolve, resolve_all
from tests.test_augment import PLAIN, VIEW, view

FULL = {"flip": 0.5, "jitter_p": 0.8, "gray": 0.2, "blur_p": 0.5, "solarize_p": 0.2, "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}


def pixels(n, height, width, seed=0):
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def numbers(n, seed=0):
    return torch.rand(n, NUMBERS, generator=torch.Generator().manual_seed(seed))


def planes(n, size=24, seed=0):
    return tuple(pixels(n, size, size, seed).float().div(255).unbind(1))


def together(rgb):
    return torch.stack(rgb, 1)


def apart(image):
    return tuple(c[None] for c in image)


# ------------------------------------------------------------------------------------------ crop
@pytest.mark.parametrize(("interpolation", "antialias"), [("bilinear", False), ("bilinear", True), ("bicubic", True), ("bicubic", False)])
@pytest.mark.parametrize("size", [20, 48, 96])
def test_crop_and_resize_equal_torchvision(interpolation, antialias, size):
    x = pixels(24, 80, 64)
    box = draw_box(numbers(24)[:, COLOURS:], 80, 64, (0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    ours = together(resample(x, torch.arange(24), box, size, interpolation, antialias, 80.0))
    mode = v2.InterpolationMode(interpolation)
    for k, image in enumerate(x):
        corner = [int(t[k]) for t in (box.top, box.left, box.height, box.width)]
        theirs = F.resized_crop(image.float() / 255, *corner, [size, size], mode, antialias).clamp(0, 1)
        torch.testing.assert_close(ours[k], theirs.flip(-1) if box.flip[k] else theirs, atol=5e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(8, 300),
    st.integers(8, 300),
    st.floats(0.001, 1),
    st.floats(0, 1),
    st.floats(0.1, 1.0),
    st.floats(1.0, 9.0),
    st.integers(0, 99),
)
def test_boxes_are_torchvisions_for_any_image(height, width, low, span, narrow, wide, seed):
    scale, ratio = (low, low + span * (1 - low)), (narrow, wide)
    u = numbers(50, seed)[:, COLOURS:]
    box = draw_box(u, height, width, scale, ratio, 0.5)
    for b in (box.top, box.left, box.height, box.width):
        assert torch.equal(b, b.round())
    assert (box.height >= 1).all()
    assert (box.width >= 1).all()
    assert ((box.top >= 0) & (box.top + box.height <= height)).all()
    assert ((box.left >= 0) & (box.left + box.width <= width)).all()
    largest = dataclasses.replace(view(), scale=scale, ratio=ratio).largest(height, width)
    for k in range(50):  # torchvision's loop over tries, on the same numbers
        areas = (scale[0] + (scale[1] - scale[0]) * u[k, :TRIES]) * (height * width)
        aspects = torch.exp(torch.log(torch.tensor(ratio[0])).lerp(torch.log(torch.tensor(ratio[1])), u[k, TRIES : 2 * TRIES]))
        tries = [(torch.sqrt(a / r), torch.sqrt(a * r)) for a, r in zip(areas, aspects, strict=True)]
        near_half = any(abs(float(t % 1) - 0.5) < 1e-3 for pair in tries for t in pair)
        good = [(int(h.round()), int(w.round())) for h, w in tries if 0 < int(h.round()) <= height and 0 < int(w.round()) <= width]
        found = (int(box.height[k]), int(box.width[k]))
        if good and not near_half:
            assert found == good[0]
            assert max(found) <= largest
        elif not near_half:
            assert found == (min(height, round(width / ratio[0])), min(width, round(height * ratio[1])))
            assert abs(2 * int(box.top[k]) + found[0] - height) <= 1


def test_a_crop_never_reads_beyond_its_box():
    x = torch.full((1, 3, 40, 40), 255, dtype=torch.uint8)
    x[..., 10:20, 10:20] = 0
    whole = torch.tensor([10.0])
    box = Box(whole, whole, whole, whole, torch.tensor([False]))
    for size in (4, 10, 32):
        for interpolation, antialias in (("bilinear", True), ("bilinear", False), ("bicubic", True), ("bicubic", False)):
            assert together(resample(x, torch.tensor([0]), box, size, interpolation, antialias, 40.0)).max() == 0


# ------------------------------------------------------------------------------------------ colour
def test_jitter_equals_torchvision_in_every_order():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    n = len(orders)
    x = planes(n)
    u = torch.rand(4, n, generator=torch.Generator().manual_seed(1))
    b, c, s, h = *(0.2 + 1.6 * u[:3]), u[3] - 0.5
    ours = together(colour.jitter(x, orders, b, c, s, h))
    apply = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for k, place in enumerate(orders.tolist()):
        theirs = together(x)[k]
        for op in sorted(range(4), key=place.__getitem__):
            theirs = apply[op](theirs, float((b, c, s, h)[op][k]))
        torch.testing.assert_close(ours[k], theirs, atol=2e-5, rtol=0)


def test_every_order_is_as_likely_and_ties_have_one():
    place = colour.places(torch.rand(24_000, 4, generator=torch.Generator().manual_seed(0)))
    found, counts = place.unique(dim=0, return_counts=True)
    assert len(found) == 24
    assert (counts.float() - 1000).abs().max() < 4.5 * 1000**0.5
    assert colour.places(torch.tensor([[0.5, 0.1, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])).tolist() == [[1, 0, 2, 3], [0, 1, 2, 3]]


def test_extreme_colours():
    flat = tuple(torch.tensor([0.0, 1.0, 0.5, 1 / 255])[:, None, None].expand(-1, 4, 4) for _ in range(3))
    for turn in (-0.5, 0.0, 0.31, 0.5):
        torch.testing.assert_close(together(colour.shift_hue(flat, torch.full((4,), turn))), together(flat))  # gray has no hue
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1, 1).unbind(0)
    third = together(colour.shift_hue(red, torch.tensor([1 / 3])))
    torch.testing.assert_close(third.flatten(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)


def test_grayscale_and_solarize_equal_torchvision():
    x = planes(8)
    on = torch.arange(8) % 2 == 0
    gray, solar = together(colour.grayscale(x, on)), together(colour.solarize(x, on, 128 / 255))
    for k, image in enumerate(together(x)):
        torch.testing.assert_close(gray[k], F.rgb_to_grayscale(image, 3) if on[k] else image, atol=1e-6, rtol=0)
        torch.testing.assert_close(solar[k], F.solarize(image, 128 / 255) if on[k] else image, atol=0, rtol=0)


@pytest.mark.parametrize(("size", "kernel"), [(24, 3), (24, 5), (64, 23), (24, 23)])
def test_blur_equals_torchvision(size, kernel):
    x, sigma, on = planes(6, size), torch.tensor([0.1, 0.3, 0.8, 1.2, 2.0, 2.0]), torch.tensor([True] * 5 + [False])
    ours = together(blur(x, sigma, on, kernel))
    for k, image in enumerate(together(x)):
        theirs = F.gaussian_blur(image, [kernel, kernel], [float(sigma[k])] * 2) if on[k] else image
        torch.testing.assert_close(ours[k], theirs, atol=2e-6, rtol=0)


# ------------------------------------------------------------------------------------------ whole views
def test_a_whole_view_is_its_operations_in_order():
    v = dataclasses.replace(view(24, **FULL), blur_kernel=5, solarize_threshold=0.4)
    x, u = pixels(60, 32, 40), numbers(60)
    ours = together(make_view(x, torch.arange(60), u, v))
    box = draw_box(u[:, COLOURS:], 32, 40, v.scale, v.ratio, v.flip)
    seen = torch.zeros(4)
    for k in range(60):
        corner = [int(t[k]) for t in (box.top, box.left, box.height, box.width)]
        y = F.resized_crop(x[k].float() / 255, *corner, [24, 24], v2.InterpolationMode.BILINEAR, v.antialias)
        y = y.flip(-1) if box.flip[k] else y
        bright, contrast, saturated, hue, jittered, gray, sigma, blurred, solarized = u[k, 4:COLOURS].tolist()
        if jittered < 0.8:
            strengths = (v.brightness, bright, F.adjust_brightness), (v.contrast, contrast, F.adjust_contrast)
            strengths = *strengths, (v.saturation, saturated, F.adjust_saturation)
            ops = [lambda t, a=a, n=n, f=f: f(t, 1 - a + 2 * a * n) for a, n, f in strengths]
            ops.append(lambda t, n=hue: F.adjust_hue(t, v.hue * (2 * n - 1)))
            for op in u[k, :4].argsort().tolist():
                y = ops[op](y)
        if gray < 0.2:
            y = F.rgb_to_grayscale(y, 3)
        if blurred < 0.5:
            y = F.gaussian_blur(y, [5, 5], [0.1 + 1.9 * sigma] * 2)
        clear = (y - 0.4).abs().amin() > 1e-5  # a rounding beside the threshold would invert
        if solarized < 0.2:
            y = F.solarize(y, 0.4)
        if solarized >= 0.2 or clear:
            torch.testing.assert_close(ours[k], y, atol=5e-5, rtol=0)
        seen += torch.tensor([jittered < 0.8, gray < 0.2, blurred < 0.5, solarized < 0.2])
    assert (seen > 3).all()


def test_views_of_several_sizes_from_chosen_rows():
    augment = {"view1": VIEW, "view2": VIEW | {"gray": 1.0}, "local": VIEW | {"size": "local"}, "local_crops": 3}
    engine = FusedEngine(resolve_all(augment, 64), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    x, rows = pixels(20, 72, 72), torch.tensor([3, 3, 7, 19])
    views = engine(x, 5, rows)
    assert [v.shape for v in views] == [(4, 3, 64, 64)] * 2 + [(4, 3, 32, 32)] * 3
    assert all(v.is_contiguous(memory_format=torch.channels_last) and v.dtype == torch.float32 for v in views)
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (engine.mean, engine.std))
    on_unit = [v * std + mean for v in views]
    assert all(v.min() >= -1e-5 and v.max() <= 1 + 1e-5 for v in on_unit)
    torch.testing.assert_close(on_unit[1][:, 0], on_unit[1][:, 2], atol=1e-5, rtol=0)
    for a in range(5):  # every view of every image is drawn for itself
        assert not torch.equal(views[a][0], views[a][1])
        assert all(views[a].shape != views[b].shape or not torch.equal(views[a], views[b]) for b in range(a))
    assert all(torch.equal(a, b) for a, b in zip(views, engine(x[rows], 5), strict=True))
    half = FusedEngine(resolve_all(augment, 64), engine.mean, engine.std, torch.bfloat16)(x, 5, rows)
    rows_first = FusedEngine(resolve_all(augment, 64), engine.mean, engine.std, channels_last=False)(x, 5, rows)
    assert all(torch.equal(a, b) and b.is_contiguous() for a, b in zip(views, rows_first, strict=True))
    assert all(torch.equal(h, v.bfloat16()) for h, v in zip(half, views, strict=True))


@pytest.mark.parametrize("field", ["flip", "jitter_p", "gray", "blur_p", "solarize_p"])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_probabilities_of_a_thousand_draws(field, p):
    x = pixels(1, 16, 16).expand(1000, -1, -1, -1)
    y = FusedEngine([view(16, **{field: p})], *PLAIN)(x, 3)[0]
    changed = (y - x.float() / 255).abs().amax((1, 2, 3)) > 1e-4
    assert float(changed.float().mean()) == pytest.approx(p, abs=4.5 * (p * (1 - p) / 1000) ** 0.5)


def test_strengths_of_a_thousand_draws():
    gray = torch.full((1000, 3, 16, 16), 128, dtype=torch.uint8)
    v = dataclasses.replace(view(16, jitter_p=1.0), brightness=0.4, contrast=0.0, saturation=0.0, hue=0.0)
    factor = FusedEngine([v], *PLAIN)(gray, 0)[0].mean((1, 2, 3)) / (128 / 255)
    assert float(factor.min()) == pytest.approx(0.6, abs=0.01)
    assert float(factor.max()) == pytest.approx(1.4, abs=0.01)
    assert float(factor.mean()) == pytest.approx(1.0, abs=0.03)


def test_one_seed_one_result_and_nothing_else_changes():
    engine = FusedEngine(resolve_all({"view1": VIEW, "view2": VIEW}, 32), (0.5,) * 3, (0.2,) * 3)
    x = pixels(200, 32, 32)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = engine(x, 1), engine(x, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, engine(x, 1), strict=True))
    assert not torch.equal(first[0], second[0])


# ------------------------------------------------------------------------------------------ cost
class NoHostReads(TorchDispatchMode):
    """Refuses operations whose result, or its shape, the host must wait for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique"), func
        assert not (func.overloadpacket.__name__ == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])), func
        return func(*args, **(kwargs or {}))


def test_views_read_nothing_on_the_host():
    x, rows = pixels(40, 72, 72), torch.arange(8)
    augment = {
        "view1": VIEW | {"solarize": {"p": 0.2, "threshold": 0.5}},
        "view2": VIEW,
        "local": VIEW | {"size": "local"},
        "local_crops": 2,
    }
    engine = FusedEngine(resolve_all(augment, 64), *PLAIN)
    with NoHostReads():
        engine(x, 0, rows)
    with pytest.raises(AssertionError), NoHostReads():
        x[x > 3]


@given(st.integers(0, 300), st.integers(0, 64))
def test_equal_parts_cover_everything(count, most):
    parts, again = equal_parts(count, most)
    assert {p.stop - p.start for p in parts} == {parts[0].stop}
    assert parts[0].stop <= max(1, most)
    whole = [i for p in parts for i in range(p.start, p.stop)]
    last = whole[len(whole) - (parts[-1].stop - parts[-1].start) :]
    assert whole[: len(whole) - len(last)] + last[again:] == list(range(count))


def test_views_do_not_depend_on_the_parts(monkeypatch):
    x, rows = pixels(11, 40, 40), torch.tensor([3, 0, 10, 10, 5, 2, 7])
    engine = FusedEngine([resolve(VIEW, 32)] * 2, *PLAIN)
    whole = engine(x, 1, rows)
    monkeypatch.setattr("ssl_zoo.augment.fused_engine.IN_CACHE", 3 * 32**2)  # 3 parts of 3, the last of them with 2 images again
    for a, b in zip(whole, engine(x, 1, rows), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "canvas", "bytes_per_view"), [(32, 32, 2.0), (224, 256, 12.0)])
def test_one_graph_few_bytes(monkeypatch, size, canvas, bytes_per_view):
    """Memory traffic of the compiled graph, in units of one float32 view."""
    graphs = []
    compile_to_module = GraphLowering.compile_to_module

    def counted(self):
        module = compile_to_module(self)
        graphs.append((self.count_bytes()[0], len(self.scheduler.nodes)))
        return module

    monkeypatch.setattr(GraphLowering, "compile_to_module", counted)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    v = resolve(VIEW, size)
    assert (v.blur_p > 0) == (size == 224)
    x = pixels(4, canvas, canvas)
    engine = FusedEngine([v, v], (0.5,) * 3, (0.25,) * 3, compile_for=4, channels_last=False)
    with torch._inductor.config.patch(force_disable_caches=True):
        views = engine(x, 0)
        engine(x, 1 << 40)
    assert engine.compile_for == 4, "it fell back to eager mode"
    assert len(graphs) == torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    rows = min(4, IN_CACHE // size**2)  # that the graph makes at once
    assert graphs[0][0] <= bytes_per_view * 2 * rows * 3 * size * size * 4
    assert graphs[0][1] <= 30
    plain = FusedEngine([v, v], (0.5,) * 3, (0.25,) * 3)(x, 0)
    for a, b in zip(views, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
        assert a.is_contiguous()
