import itertools

import pytest
import torch

from jukebox_core.separation.windows import CrossFade, batches, windows


@pytest.mark.parametrize("length", (1, 63, 64, 255, 256, 257, 448, 449, 1000, 5001))
@pytest.mark.parametrize("overlap", (0, 64, 100))
def test_cross_faded_windows_rebuild_the_signal(length, overlap):
    signal = torch.randn(2, length)
    layout = windows(length, 256, overlap, 64)
    stop = layout[-1].stop
    assert layout[0].start == 0 and stop >= length and stop % 64 == 0
    padded = torch.nn.functional.pad(signal, (0, stop - length))
    fade = CrossFade((2, length))
    for w in reversed(layout):  # any order
        fade.add(padded[:, w.start : w.stop], w.start, w.fade_in, w.fade_out)
    torch.testing.assert_close(fade.result(), signal, atol=1e-6, rtol=1e-5)


def test_every_window_has_the_same_length_and_the_overlap_asked_for():
    layout = windows(5001, 256, 64, 64)
    assert {w.stop - w.start for w in layout} == {256}
    for a, b in itertools.pairwise(layout[:-1]):
        assert a.stop - b.start == 64 == a.fade_out == b.fade_in
    assert windows(100, 256, 64, 64) == [(0, 128, 0, 0)]


def test_fades_are_complementary_ramps():
    fade = CrossFade((448,))
    ones = torch.ones(256)
    fade.add(ones, 0, 0, 64)
    fade.add(torch.zeros(256), 192, 64, 0)
    expected = torch.cat([torch.ones(192), 1 - (torch.arange(64) + 0.5) / 64, torch.zeros(192)])
    torch.testing.assert_close(fade.result(), expected)


def test_bad_layouts_are_refused():
    with pytest.raises(ValueError, match="under half the window"):
        windows(1000, 256, 128, 64)
    with pytest.raises(ValueError, match="cannot cover 0 samples"):
        windows(0, 256, 64, 64)


def test_batches_keep_order():
    layout = windows(5001, 256, 64, 64)
    assert [w for group in batches(layout, 3) for w in group] == layout
