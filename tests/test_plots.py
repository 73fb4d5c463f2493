"""The data on the axes, not the pixels; and what a notebook receives."""

import base64
import io

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from scipy import stats

from rlhf_lab import plots
from rlhf_lab.statistics import Interval, proportion_interval

matplotlib.use("Agg")

ALT = "Gold reward rises to 1.2 and then falls, while the proxy reward keeps rising."


@pytest.fixture(autouse=True)
def _style_of_this_test_only():
    with plt.rc_context():
        yield


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, as (bundle, metadata) pairs."""
    outputs = []

    def display(thing, metadata=None, raw=False):
        outputs.append((thing if raw else {"text/markdown": thing.data}, metadata))

    monkeypatch.setattr(plots, "display", display)
    return outputs


def test_curve_draws_seeds_mean_and_t_band(ax):
    x = np.arange(20)
    per_seed = np.random.default_rng(0).normal(0, 1, (5, 20)).cumsum(axis=1)
    plots.curve_with_band(ax, x, per_seed, "gold")
    *seeds, mean = ax.lines
    assert np.array_equal([line.get_ydata() for line in seeds], per_seed)
    assert np.allclose(mean.get_ydata(), per_seed.mean(axis=0))
    assert np.array_equal(mean.get_xdata(), x)
    assert ax.get_legend_handles_labels()[1] == ["gold"]  # the seeds stay out of the legend

    low, high = stats.ttest_1samp(per_seed, 0).confidence_interval(0.95)
    corners = {(round(px, 9), round(py, 9)) for px, py in ax.collections[0].get_paths()[0].vertices}
    for t in x:
        assert {(t, round(low[t], 9)), (t, round(high[t], 9))} <= corners


def test_one_seed_is_a_line_without_a_band(ax):
    plots.curve_with_band(ax, [0, 1, 2], [[1.0, 3.0, 2.0]], "gold")
    (line,) = ax.lines
    assert list(line.get_ydata()) == [1, 3, 2]
    assert not ax.collections


def test_curves_differ_without_color(ax):
    for index in range(4):
        plots.curve_with_band(ax, [0, 1], [[0.0, index]], str(index), index)
    assert len({line.get_linestyle() for line in ax.lines}) == 4
    assert len({line.get_marker() for line in ax.lines}) == 4
    assert len({line.get_color() for line in ax.lines}) == 4


@pytest.mark.parametrize("x, per_seed", [([0, 1], [1.0, 2.0]), ([0, 1, 2], [[1.0, 2.0]]), ([[0, 1]], [[1.0, 2.0]])])
def test_curve_refuses_other_shapes(ax, x, per_seed):
    with pytest.raises(ValueError, match=r"needs x \(T,\) and per_seed \(S, T\)"):
        plots.curve_with_band(ax, x, per_seed, "gold")


def test_bars_draw_values_intervals_and_reference(ax):
    wilson = proportion_interval(66, 100)
    plots.interval_bars(ax, ["model", "one seed"], [wilson, Interval(0.6, None, None, 0.95, 1, "seed")], 0.5)
    assert [bar.get_height() for bar in ax.patches] == [0.66, 0.6]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["model", "one seed"]
    (error,) = ax.collections  # none for the single seed
    assert np.allclose(error.get_segments()[0], [(0, wilson.low), (0, wilson.high)])
    (reference,) = ax.lines
    assert set(reference.get_ydata()) == {0.5}


def test_bars_need_as_many_names_as_intervals(ax):
    with pytest.raises(ValueError, match="got 1 names for 2 intervals"):
        plots.interval_bars(ax, ["a"], [proportion_interval(1, 2)] * 2)


def test_show_displays_png_alt_text_and_caption_then_closes(shown):
    plots.style()
    figure, ax = plt.subplots()
    plots.curve_with_band(ax, np.arange(100), np.random.default_rng(0).normal(size=(5, 100)), "gold")
    plots.show(figure, alt=ALT.replace(" ", "\n  ", 1))
    (bundle, metadata), (caption, _) = shown
    png = base64.b64decode(bundle["image/png"])
    assert 550 < plt.imread(io.BytesIO(png)).shape[1] <= 704  # 6.4 inches at 110 dpi, less the empty margin
    assert len(png) < 60_000  # bytes, of five lines of white noise, the worst that a figure can hold
    assert metadata == {"image/png": {"alt": ALT}}
    assert bundle["text/plain"] == ALT
    assert caption == {"text/markdown": f"*Figure: {ALT}*"}
    assert not plt.fignum_exists(figure.number)


@pytest.mark.parametrize("alt", ["", "  \n ", "A figure."])
def test_figure_without_description_is_refused(ax, shown, alt):
    with pytest.raises(ValueError, match="too short"):
        plots.show(ax.figure, alt=alt)
    assert not shown


@pytest.mark.parametrize("publish", [True, False])
def test_only_the_published_run_saves_images(ax, shown, publish, monkeypatch, tmp_path):
    monkeypatch.setattr(plots, "ROOT", tmp_path)
    monkeypatch.setenv("RLHF_LAB_PUBLISH", "1" if publish else "0")
    plots.show(ax.figure, alt=ALT, name="overoptimization")
    saved = list(tmp_path.rglob("*.png"))
    assert saved == ([tmp_path / "images" / "overoptimization.png"] if publish else [])
    if publish:
        assert saved[0].read_bytes() == base64.b64decode(shown[0][0]["image/png"])


def test_style_sets_a_palette_for_the_color_blind():
    plots.style()
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == plots.COLORS
    assert plt.rcParams["figure.dpi"] == plots.DPI
