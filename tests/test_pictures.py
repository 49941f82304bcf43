"""Pictures show their data: what is drawn where, with which labels and limits, in which frames."""

import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from scoring import pictures
from scoring.pictures import (
    alignment_film,
    figure_to_array,
    loss_figure,
    save_figure,
    summary_figure,
)

pytestmark = pytest.mark.filterwarnings("error")  # a missing glyph is a warning

HOP = 256 / 22050
SHORT_TEXT = "It cost $5 or $6."
LONG_TEXT = "Printing, in the only sense with which we are at present concerned, differs from most"


def soft_alignment(n_frames, n_characters, width=0.6):
    centres = np.linspace(0, n_characters - 1, n_frames)[:, None]
    alignment = np.exp(-0.5 * ((np.arange(n_characters) - centres) / width) ** 2)
    return alignment / alignment.sum(axis=1, keepdims=True)


def some_mel(n_frames, seed=0):
    return np.random.default_rng(seed).normal(size=(n_frames, 80))


def draw(alignment, text=None, **options):
    """The alignment, as axes[-1], below some mel."""
    text = text or "x" * alignment.shape[1]
    return summary_figure(None, some_mel(len(alignment)), alignment, text, HOP, **options)


def y_labels(figure):
    figure_to_array(figure)  # a missing glyph would warn
    return figure.axes[-1].get_yticklabels()


# Mels and alignments


def test_a_bright_cell_is_seen_at_its_seconds_and_character():
    alignment = np.zeros((10, 8))
    alignment[7, 2] = 1.0
    figure = draw(alignment)
    pixels = figure_to_array(figure)

    def colour_at(frame, character):
        place = figure.axes[-1].transData.transform(((frame + 0.5) * HOP, character))
        return pixels[len(pixels) - 1 - int(place[1]), int(place[0])]

    bright, dark = (255 * np.array(colormaps[pictures.COLOUR_MAP](x)[:3]) for x in (1.0, 0.0))
    np.testing.assert_allclose(colour_at(7, 2), bright, atol=2)
    for place in ((6, 2), (8, 2), (7, 1), (7, 3), (2, 7), (7, 5)):
        np.testing.assert_allclose(colour_at(*place), dark, atol=2)


def test_mels_and_alignment_share_time_and_mels_their_colours():
    alignment = torch.from_numpy(soft_alignment(40, len(SHORT_TEXT)))
    mels = some_mel(50), 3 * some_mel(40)
    mels[1][3] = np.nan  # of a diverged model; must not blank the picture
    figure = summary_figure(mels[0], torch.from_numpy(mels[1]), alignment, SHORT_TEXT, HOP)
    names = [axes.get_ylabel() for axes in figure.axes]
    assert names == ["true mel (bin)", "predicted mel (bin)", ""]
    figure_to_array(figure)
    assert len({(axes.bbox.x0, axes.bbox.width) for axes in figure.axes}) == 1
    mel_range = np.nanmin(mels[1]), np.nanmax(mels[1])
    for axes, values, limits in zip(
        figure.axes, (*mels, alignment), (mel_range, mel_range, (0, 1)), strict=True
    ):
        assert axes.get_xlim() == pytest.approx((0, 50 * HOP))  # the longer of the two
        assert axes.images[0].get_clim() == pytest.approx(limits)
        shown = axes.images[0].get_array().filled(np.nan)
        np.testing.assert_allclose(shown, np.asarray(values).T, atol=1e-6)
        n_frames, n = values.shape
        assert axes.images[0].get_extent() == [0, n_frames * HOP, -0.5, n - 0.5]
    assert [axes.get_ylabel() for axes in draw(alignment).axes] == ["mel (bin)", ""]


def test_short_texts_are_labelled_by_character():
    text = (SHORT_TEXT + " But it is worth much more to those who can read a")[:60]
    figure = draw(soft_alignment(90, 60), text, title=text)  # "$5 or $6" would fail as a formula
    assert [label.get_text() for label in y_labels(figure)] == list(text.replace(" ", "␣"))
    assert list(figure.axes[-1].get_yticks()) == list(range(60))
    with pytest.raises(ValueError, match="text has 4 characters, its alignment 60"):
        draw(soft_alignment(90, 60), "four")


def test_long_texts_are_labelled_by_word_without_overlap():
    text, least = LONG_TEXT, 13
    figure = draw(soft_alignment(300, len(text)), text, title=text * 2)
    labels = y_labels(figure)
    assert len(labels) >= least and {label.get_text() for label in labels} <= set(text.split())
    first = text.split()[0]
    assert labels[0].get_text() == first
    assert figure.axes[-1].get_yticks()[0] == (len(first) - 1) / 2  # its middle
    boxes = [label.get_window_extent() for label in labels]
    assert all(low.y1 < high.y0 for low, high in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)
    title = figure.axes[0].title.get_window_extent()
    assert title.x0 >= 0 and title.x1 <= figure.bbox.x1 and title.y1 <= figure.bbox.y1


def test_a_single_cell_of_many_keeps_its_value():
    """A mean over the cells of a pixel would be a sixth of it."""
    cell = (1990, 630)
    alignment = np.zeros((2003, 641))
    alignment[cell] = 1.0
    axes = draw(alignment).axes[-1]
    shown = np.asarray(axes.images[0].get_array())
    rows, columns = shown.shape
    assert axes.bbox.height / 2 < rows <= axes.bbox.height
    assert axes.bbox.width / 2 < columns <= axes.bbox.width
    (row,), (column,) = np.nonzero(shown)
    assert shown[row, column] == 1.0
    _, right, bottom, top = axes.images[0].get_extent()
    assert axes.get_xlim()[1] == pytest.approx(2003 * HOP) and axes.get_ylim() == (-0.5, 640.5)
    assert abs((column + 0.5) / columns * right / HOP - cell[0]) < 3
    assert abs((row + 0.5) / rows * (top - bottom) + bottom - cell[1]) < 2


# Curves


def panels_of(history):
    """The panels of a history by title."""
    figure = loss_figure(history)
    figure_to_array(figure)
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_losses_share_a_panel_and_a_log_scale():
    history = [
        {"epoch": e, "train_loss": 5.0 / e, "train_stop_loss": 1.0 / e, "learning_rate": 1e-3}
        for e in range(1, 6)
    ]
    history[2]["val_loss"], history[4]["val_loss"] = 2.0, 1.2  # every other epoch
    history[3]["train_stop_loss"] = float("nan")
    panels = panels_of(history)
    assert list(panels) == ["loss", "stop loss", "learning rate"]
    total = panels["loss"]
    assert total.get_yscale() == "log"
    assert [line.get_label() for line in total.lines] == ["training 1", "validation 1.2"]
    assert list(total.lines[0].get_ydata()) == [5.0 / e for e in range(1, 6)]
    assert list(total.lines[1].get_xdata()) == [3, 5]
    assert list(panels["stop loss"].lines[0].get_xdata()) == [1, 2, 3, 5]
    bottom, top = total.get_ylim()
    assert sum(bottom <= tick <= top for tick in total.get_yticks()) >= 3  # though in one decade
    panels = panels_of([{"coverage": 1.0, "free_running_coverage": x} for x in (1.0, 0.996)])
    forced, free = panels["coverage"].lines
    assert forced.get_label() == "teacher forced 1.000" and free.get_label() == "free running 0.996"
    assert -0.1 < panels["coverage"].get_ylim()[0] < 0 < 1 < panels["coverage"].get_ylim()[1] < 1.1


# Files


def test_a_png_is_the_figure_and_is_deterministic(tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "new/folder/b.png"
    for path in (first, second):
        figure = draw(soft_alignment(40, len(SHORT_TEXT)), SHORT_TEXT, title="epoch 1")
        save_figure(figure, path)
        assert path.read_bytes() == first.read_bytes()
    with Image.open(first) as png:
        np.testing.assert_array_equal(np.asarray(png.convert("RGB")), figure_to_array(figure))
        assert "Software" not in png.info
    assert os.listdir(second.parent) == ["b.png"]  # no temporary file stays


def test_a_film_loops_and_keeps_one_mel_range_for_all_frames(tmp_path):
    flat = [np.full((10, 80), value) for value in (0.0, 1.0)]
    path = tmp_path / "film.gif"
    alignment_film([soft_alignment(10, 5)] * 2, path, "Hello", ["a", "b"], HOP, flat)
    with Image.open(path) as gif:
        for i, milliseconds in enumerate((300, 2500)):  # the last frame stays
            gif.seek(i)
            assert (gif.size, gif.info["loop"]) == ((640, 400), 0)
            assert gif.info["duration"] == milliseconds
            colour = 255 * np.array(colormaps[pictures.COLOUR_MAP](float(i))[:3])
            np.testing.assert_allclose(gif.convert("RGB").getpixel((300, 90)), colour, atol=4)
