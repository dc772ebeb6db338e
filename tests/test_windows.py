import itertools

import pytest
import torch

from jukebox_core.separation.windows import CrossFade, Layout, batches


@pytest.mark.parametrize("length", (1, 63, 64, 255, 256, 257, 448, 449, 1000, 5001))
@pytest.mark.parametrize("overlap", (0, 64, 100))
def test_cross_faded_windows_rebuild_the_signal(length, overlap):
    signal = torch.randn(2, length)
    layout = Layout(256, overlap, 64).finish(length)
    stop = layout[-1].stop
    assert layout[0].start == 0 and stop >= length and stop % 64 == 0
    padded = torch.nn.functional.pad(signal, (0, stop - length))
    fade = CrossFade((2,))
    for w in reversed(layout):  # any order
        fade.add(padded[:, w.start : w.stop], w.start, w.fade_in, w.fade_out)
    torch.testing.assert_close(fade.take(length), signal, atol=1e-6, rtol=1e-5)


def test_every_window_has_the_same_length_and_the_overlap_asked_for():
    layout = Layout(256, 64, 64).finish(5001)
    assert {w.stop - w.start for w in layout} == {256}
    for a, b in itertools.pairwise(layout[:-1]):
        assert a.stop - b.start == 64 == a.fade_out == b.fade_in
    assert Layout(256, 64, 64).finish(100) == [(0, 128, 0, 0)]


def test_fades_are_complementary_ramps():
    fade = CrossFade()
    ones = torch.ones(256)
    fade.add(ones, 0, 0, 64)
    fade.add(torch.zeros(256), 192, 64, 0)
    expected = torch.cat([torch.ones(192), 1 - (torch.arange(64) + 0.5) / 64, torch.zeros(192)])
    torch.testing.assert_close(fade.take(448), expected)


def test_bad_layouts_are_refused():
    with pytest.raises(ValueError, match="under half the window"):
        Layout(256, 128, 64).finish(1000)
    with pytest.raises(ValueError, match="cannot cover 0 samples"):
        Layout(256, 64, 64).finish(0)


def test_batches_keep_order():
    layout = Layout(256, 64, 64).finish(5001)
    assert [w for group in batches(layout, 3) for w in group] == layout


@pytest.mark.parametrize("length", (1, 64, 255, 256, 257, 448, 449, 450, 640, 641, 1000, 5001))
@pytest.mark.parametrize("overlap", (0, 64, 100))
@pytest.mark.parametrize("step", (1, 97, 6000))
def test_a_layout_that_grows_is_the_layout_of_the_whole(length, overlap, step):
    layout = Layout(256, overlap, 64)
    found = []
    for known in [*range(0, length, step), length]:
        new = layout.grow(known)
        assert all(w.stop <= known for w in new)
        found += new
        assert all(w.start < layout.next_start for w in found)
        assert known - layout.next_start <= 2 * 256 + step  # what must be kept is bounded
    rest = layout.finish(length)
    assert rest[0].start == layout.next_start
    assert found + rest == Layout(256, overlap, 64).finish(length)


@pytest.mark.parametrize("length", (300, 1000, 5001))
def test_a_cross_fade_gives_away_what_no_window_reaches_any_more(length):
    signal = torch.randn(2, length)
    layout = Layout(256, 100, 64).finish(length)
    padded = torch.nn.functional.pad(signal, (0, layout[-1].stop - length))
    fade, whole = CrossFade((2,)), CrossFade((2,))
    taken = []
    for w, after in zip(layout, [*layout[1:], None], strict=True):
        for each in (fade, whole):
            each.add(padded[:, w.start : w.stop], w.start, w.fade_in, w.fade_out)
        taken.append(fade.take(after.start if after else length))
    assert torch.equal(torch.cat(taken, 1), whole.take(length))
    with pytest.raises(ValueError, match=f"all before {length} is taken"):
        fade.add(padded[:, :256], 0, 0, 0)
    assert fade.take(length - 1).shape == (2, 0)
