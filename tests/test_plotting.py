"""Pictures are tested by their pixels and by what a reader sees: labels, limits, frames."""

import gc
import os
import subprocess
import sys
import weakref
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib import colormaps, font_manager
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from scoring import pictures
from scoring.pictures import (
    alignment_film,
    figure_to_array,
    loss_figure,
    save_figure,
    summary_figure,
)
from scoring.scores import ALIGNMENT_SCORES, FREE_RUNNING_SCORES

pytestmark = pytest.mark.filterwarnings("error")  # a missing glyph is a warning

SHORT_TEXT = "It cost $5 or $6."
LONG_TEXT = "Printing, in the only sense with which we are at present concerned, differs from most"
HOP_SECONDS = 256 / 22050
HISTORY = [
    {
        "epoch": epoch,
        "train_loss": 5.0 / epoch,
        "val_loss": 6.0 / epoch,
        "train_attention_loss": 4.0 / epoch,
        "val_attention_loss": 5.0 / epoch,
        "val_alignment_score": 1 - 1 / epoch,
        "learning_rate": 1e-3,
    }
    for epoch in range(1, 6)
]


def soft_alignment(n_frames: int, n_characters: int, width: float = 0.6) -> np.ndarray:
    centres = np.linspace(0, n_characters - 1, n_frames)[:, None]
    alignment = np.exp(-0.5 * ((np.arange(n_characters) - centres) / width) ** 2)
    return alignment / alignment.sum(axis=1, keepdims=True)


def some_mel(n_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_frames, 80))


def draw_alignment(alignment: ArrayLike, text: str | None = None, **options) -> Figure:
    """The alignment, as axes[-1], below some mel."""
    return summary_figure(None, some_mel(len(alignment)), alignment, text, **options)


def pixel_at(
    figure: Figure, panel: int, x: float, y: float, pixels: np.ndarray | None = None
) -> np.ndarray:
    """The RGB of data point (x, y): array rows count from the top."""
    pixels = figure_to_array(figure) if pixels is None else pixels
    column, row = figure.axes[panel].transData.transform((x, y))
    return pixels[pixels.shape[0] - 1 - int(row), int(column)].astype(int)


def inside(figure: Figure, panel: int) -> tuple[slice, slice]:
    """The panel's rows and columns of pixels, its frame included."""
    box, height = figure.axes[panel].bbox, round(figure.bbox.height)
    rows = slice(height - round(box.y1) - 2, height - round(box.y0) + 2)
    return rows, slice(round(box.x0) - 2, round(box.x1) + 2)


def colour_of(value: float) -> np.ndarray:
    return (255 * np.array(colormaps[pictures.COLOUR_MAP](value)[:3])).round().astype(int)


def y_labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[-1].get_yticklabels()]


# Orientation and colours


def test_bright_cell_is_found_at_its_seconds_and_character():
    alignment = np.zeros((10, 8))
    alignment[7, 2] = 1.0
    figure = draw_alignment(alignment, hop_seconds=0.5)
    np.testing.assert_allclose(pixel_at(figure, -1, 7.5 * 0.5, 2), colour_of(1.0), atol=2)
    for x, y in [(6.5, 2), (8.5, 2), (7.5, 1), (7.5, 3), (2.5, 7), (7.5, 5)]:
        np.testing.assert_allclose(pixel_at(figure, -1, x * 0.5, y), colour_of(0.0), atol=2)
    assert figure.axes[-1].get_xlim() == (0, 5.0)
    assert figure.axes[-1].get_xlabel() == "seconds"
    assert draw_alignment(alignment).axes[-1].get_xlabel() == "decoder step"


def test_alignment_colours_do_not_depend_on_its_values():
    faint = draw_alignment(np.full((10, 8), 0.1))
    np.testing.assert_allclose(pixel_at(faint, -1, 5, 4), colour_of(0.1), atol=2)
    assert faint.axes[-1].images[0].get_clim() == (0, 1)


def test_mel_colours_span_its_finite_values():
    mel = some_mel(20)
    mel[3] = np.nan
    figure = summary_figure(None, mel, soft_alignment(20, 10))
    limits = (np.nanmin(mel), np.nanmax(mel))
    assert figure.axes[0].images[0].get_clim() == pytest.approx(limits)
    figure_to_array(figure)
    figure_to_array(summary_figure(None, np.full((5, 80), np.nan), soft_alignment(5, 3)))


# Labels


def test_short_text_is_labelled_by_character():
    figure = draw_alignment(soft_alignment(40, len(SHORT_TEXT)), SHORT_TEXT, title=SHORT_TEXT)
    assert y_labels(figure) == list(SHORT_TEXT.replace(" ", "␣"))
    assert list(figure.axes[-1].get_yticks()) == list(range(len(SHORT_TEXT)))
    figure_to_array(figure)  # "$5 or $6" would fail or vanish as a formula


def test_dollars_are_drawn_as_dollars():
    alignment = soft_alignment(40, 10)
    as_text = figure_to_array(draw_alignment(alignment, title="$5 or $6"))
    escaped = draw_alignment(alignment, title="x")
    escaped.axes[0].set_title(r"\$5 or \$6", fontsize=pictures.FONT_SIZE + 1, parse_math=True)
    np.testing.assert_array_equal(as_text, figure_to_array(escaped))


def test_sixty_characters_still_have_their_labels():
    text = LONG_TEXT[:60]
    assert len(y_labels(draw_alignment(soft_alignment(90, 60), text))) == 60


def test_long_text_is_labelled_by_word_without_overlap():
    figure = draw_alignment(soft_alignment(300, len(LONG_TEXT)), LONG_TEXT, title=LONG_TEXT * 2)
    labels = y_labels(figure)
    assert labels[0] == "Printing," and figure.axes[-1].get_yticks()[0] == 4  # its middle
    assert set(labels) <= set(LONG_TEXT.split())
    assert len(labels) > 0.8 * len(LONG_TEXT.split())
    figure_to_array(figure)
    boxes = [label.get_window_extent() for label in figure.axes[-1].get_yticklabels()]
    assert all(low.y1 < high.y0 for low, high in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)
    title = figure.axes[0].title.get_window_extent()
    assert title.x0 >= 0 and title.x1 <= figure.bbox.x1 and title.y1 <= figure.bbox.y1


def test_words_too_short_for_a_label_go_without():
    text = "a b c d e " * 18
    figure = draw_alignment(soft_alignment(300, len(text)), text)
    figure_to_array(figure)
    boxes = [label.get_window_extent() for label in figure.axes[-1].get_yticklabels()]
    assert len(boxes) > 20
    assert all(low.y1 < high.y0 for low, high in pairwise(boxes))


def test_space_mark_is_in_the_label_font():
    path = font_manager.findfont(pictures.LABEL_FONT, fallback_to_default=False)
    assert font_manager.get_font(path).get_char_index(ord(pictures.VISIBLE_SPACE)) != 0


# Summary


def test_summary_shares_time_and_mel_colours():
    alignment = soft_alignment(40, len(SHORT_TEXT))
    mels = some_mel(50), 3 * some_mel(40)
    figure = summary_figure(*mels, alignment, SHORT_TEXT, HOP_SECONDS)
    true, predicted, below = figure.axes
    assert true.get_xlim() == predicted.get_xlim() == below.get_xlim()
    assert below.get_xlim() == pytest.approx((0, 50 * HOP_SECONDS))  # the longer of the two
    assert true.images[0].get_clim() == predicted.images[0].get_clim()
    assert below.images[0].get_clim() == (0, 1)
    for axes, values in ((true, mels[0]), (predicted, mels[1]), (below, alignment)):
        np.testing.assert_allclose(axes.images[0].get_array(), values.T, atol=1e-6)
        n_frames, n = values.shape
        assert axes.images[0].get_extent() == [0, n_frames * HOP_SECONDS, -0.5, n - 0.5]
    figure_to_array(figure)
    lefts_and_widths = {(axes.bbox.x0, axes.bbox.width) for axes in figure.axes}
    assert len(lefts_and_widths) == 1
    assert [axes.get_ylabel() for axes in (true, predicted)] == [
        "true mel (bin)",
        "predicted mel (bin)",
    ]


def test_summary_without_a_true_mel():
    alignment = soft_alignment(40, len(SHORT_TEXT))
    figure = summary_figure(None, some_mel(40), alignment, SHORT_TEXT, HOP_SECONDS)
    assert len(figure.axes) == 2
    assert figure.axes[0].get_ylabel() == "mel (bin)"


def test_torch_tensors_draw_like_arrays():
    alignment = soft_alignment(20, 10).astype(np.float32)
    mel = some_mel(20).astype(np.float32)
    from_tensors = summary_figure(None, torch.from_numpy(mel), torch.from_numpy(alignment))
    np.testing.assert_array_equal(
        figure_to_array(from_tensors), figure_to_array(summary_figure(None, mel, alignment))
    )


# Long alignments: more cells than pixels


PATH = np.round(255 * np.array(to_rgb(pictures.PATH_COLOUR)))


def is_near(
    colour: np.ndarray, figure: Figure, x: float, y: float, pixels: np.ndarray | None = None
) -> bool:
    """Whether the colour is among the 3 by 3 pixels about data point (x, y) of the last panel."""
    pixels = figure_to_array(figure) if pixels is None else pixels
    column, row = (int(place) for place in figure.axes[-1].transData.transform((x, y)))
    row = pixels.shape[0] - 1 - row
    patch = pixels[row - 1 : row + 2, column - 1 : column + 2].astype(int)
    return bool((np.abs(patch - colour).max(axis=-1) <= 4).any())


@pytest.mark.parametrize("cell", [(10, 5), (1501, 333), (1990, 630)])
def test_a_single_cell_of_many_keeps_its_colour(cell, monkeypatch):
    """A mean over the cells of its pixel would be a quarter of it."""
    monkeypatch.setattr(pictures, "PATH_BELOW", 0.0)
    alignment = np.zeros((2003, 641))
    alignment[cell] = 1.0
    figure = draw_alignment(alignment, hop_seconds=0.5)
    pixels, axes, (frame, character) = figure_to_array(figure), figure.axes[-1], cell
    assert is_near(colour_of(1.0), figure, (frame + 0.5) * 0.5, character, pixels)
    inner = pixels[inside(figure, 1)][5:-5, 5:-5].astype(int)
    lit = np.abs(inner - colour_of(0.0)).sum(axis=-1) > 50
    assert lit.sum() <= 16  # and nothing else is lit
    assert axes.get_xlim() == (0, 2003 * 0.5) and axes.get_ylim() == (-0.5, 640.5)
    assert axes.images[0].get_extent() == [0, 2004 * 0.5, -0.5, 641.5]  # whole blocks of 3 by 2
    rows, columns = axes.images[0].get_array().shape
    assert axes.bbox.height / 2 < rows <= axes.bbox.height
    assert axes.bbox.width / 2 < columns <= axes.bbox.width


def test_arg_max_of_long_alignments_is_marked():
    alignment = soft_alignment(1000, 187)
    figure = draw_alignment(alignment, hop_seconds=HOP_SECONDS)
    pixels = figure_to_array(figure)
    for frame in range(5, 995, 99):
        time, character = (frame + 0.5) * HOP_SECONDS, alignment[frame].argmax()
        assert is_near(PATH, figure, time, character, pixels)
        assert not is_near(PATH, figure, time, (character + 90) % 187, pixels)
    assert len(draw_alignment(soft_alignment(300, 60)).axes[-1].lines) == 0  # it is seen without
    wide = draw_alignment(soft_alignment(1000, 187, width=12))
    assert not (figure_to_array(wide) == PATH).all(axis=-1).any()


def test_film_marks_the_arg_max_of_each_frame(tmp_path):
    alignments = [np.zeros((300, 100)), np.zeros((300, 100))]
    alignments[0][:, 20] = alignments[1][:, 70] = 0.2
    film = make_film(tmp_path / "film.gif", alignments)
    for pixels, marked, free in zip(film.frames, (20, 70), (70, 20), strict=True):
        assert is_near(PATH, film.figure, 150, marked, pixels)
        assert not is_near(PATH, film.figure, 150, free, pixels)


# Losses


def test_loss_figure_has_a_panel_per_quantity():
    figure = loss_figure(HISTORY)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["loss", "attention loss", "learning rate", "alignment score"]
    total = figure.axes[0]
    assert total.get_yscale() == "log"
    assert [line.get_label() for line in total.lines] == ["training 1", "validation 1.2"]
    np.testing.assert_allclose(total.lines[1].get_ydata(), [row["val_loss"] for row in HISTORY])
    np.testing.assert_allclose(total.lines[0].get_xdata(), [1, 2, 3, 4, 5])
    bottom, top = total.get_ylim()
    assert sum(bottom <= tick <= top for tick in total.get_yticks()) >= 3  # though in one decade
    assert figure.axes[3].get_yscale() == "linear"
    figure_to_array(figure)


def score_panels() -> dict:
    """The panels of a run's scores, by title. Free running skips characters at the end."""
    names = [*ALIGNMENT_SCORES, *FREE_RUNNING_SCORES]
    history = [dict.fromkeys(names, 0.6) | {"epoch": epoch} for epoch in (1, 2, 3)]
    for row, coverage in zip(history, (1.0, 0.998, 0.996), strict=True):
        row |= {"coverage": 1.0, "free_running_coverage": coverage}
    return {axes.get_title(loc="left"): axes for axes in loss_figure(history).axes}


def test_scores_are_drawn_from_0_to_1():
    for axes in score_panels().values():
        bottom, top = axes.get_ylim()
        assert -0.1 < bottom < 0 and 1 < top < 1.1
    (beyond,) = loss_figure([{"free_running_score": 1.5}, {"free_running_score": 2.0}]).axes
    assert beyond.get_ylim()[1] > 2
    assert loss_figure(HISTORY).axes[0].get_ylim()[1] > 5


def test_teacher_forced_and_free_running_share_a_panel():
    panels = score_panels()
    titles = ["free running score", "coverage", "focus", "monotonicity", "stopped by itself"]
    assert list(panels) == titles
    forced, free = panels["coverage"].lines
    assert forced.get_label() == "teacher forced 1.000" and free.get_label() == "free running 0.996"
    assert list(forced.get_ydata()) == [1, 1, 1] and list(free.get_ydata()) == [1, 0.998, 0.996]
    assert forced.get_color() != free.get_color()
    assert panels["coverage"].get_legend() is not None
    assert panels["stopped by itself"].get_legend() is None


@pytest.mark.parametrize("n_panels", [1, 2, 11, 30])
def test_sheet_is_at_most_two_screens_high(n_panels):
    history = [{f"val_{i}_loss": 1.0 for i in range(n_panels)}, {"epoch": 2}]
    figure = loss_figure(history)
    assert len(figure.axes) == n_panels
    assert figure.bbox.height <= (1000 if n_panels == 11 else 2000)
    places = [axes.get_position().bounds for axes in figure.axes]
    assert len(set(places)) == n_panels


@pytest.mark.parametrize(
    "history",
    [
        HISTORY[:1],
        [{"train_loss": 3.0}],
        [{"epoch": 1, "val_loss": 2.0}, {"epoch": 2, "train_loss": 1.0, "note": "warm"}],
        [{"epoch": 1, "train_guided_loss": 1.0}, {"epoch": 2, "train_guided_loss": 0.0}],
        [{"epoch": 1, "train_loss": float("nan"), "val_loss": None, "val_stop_loss": 1.0}],
    ],
)
def test_loss_figure_takes_short_and_patchy_histories(history):
    figure = loss_figure(history)
    for axes in figure.axes:
        assert len(axes.lines) > 0
        assert all(np.isfinite(line.get_ydata()).all() for line in axes.lines)
    figure_to_array(figure)


def test_validation_every_other_epoch_keeps_its_epochs():
    history = [{"epoch": e, "train_loss": 1.0 / e} for e in (11, 12, 13, 14)]
    history[1]["val_loss"], history[3]["val_loss"] = 0.8, 0.4
    history[2]["val_focus"] = 0.1
    total, focus = loss_figure(history).axes
    assert list(total.lines[1].get_xdata()) == [12, 14]
    assert list(focus.lines[0].get_xdata()) == [13]


# Files


def test_png_is_the_figure_and_is_deterministic(tmp_path):
    for name in ("a.png", "new/folder/b.png"):
        figure = draw_alignment(soft_alignment(40, len(SHORT_TEXT)), SHORT_TEXT, title="epoch 1")
        save_figure(figure, tmp_path / name)
    first, second = tmp_path / "a.png", tmp_path / "new" / "folder" / "b.png"
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as png:
        np.testing.assert_array_equal(np.asarray(png.convert("RGB")), figure_to_array(figure))
        assert "Software" not in png.info
    save_figure(figure, second)  # drawing it again moves nothing
    assert first.read_bytes() == second.read_bytes()
    assert os.listdir(second.parent) == ["b.png"]  # no temporary file stays


def test_failed_writes_leave_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    figure = summary_figure(None, some_mel(5), soft_alignment(5, 3))

    def fail_halfway(file, **_):
        with open(file, "wb") as half:
            half.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail_halfway)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, path)
    monkeypatch.setattr(Image.Image, "save", lambda self, file, **_: fail_halfway(file))
    with pytest.raises(OSError, match="disk full"):
        alignment_film([soft_alignment(10, 5)], path)
    assert os.listdir(tmp_path) == ["a.png"]
    assert path.read_bytes() == b"before"


# The film


class Film(NamedTuple):
    """A GIF as it is read back, and the figure that its frames were drawn from."""

    frames: list[np.ndarray]  # RGB
    durations: list[int]  # ms
    info: dict
    n_bytes: int
    figure: Figure


def make_film(path: Path, *arguments, **options) -> Film:
    figures = []

    def watched(figure: Figure) -> np.ndarray:
        figures.append(figure)
        return figure_to_array(figure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "figure_to_array", watched)
        alignment_film(arguments[0], path, *arguments[1:], **options)
    frames, durations = [], []
    with Image.open(path) as gif:
        info = dict(gif.info)
        for i in range(gif.n_frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    return Film(frames, durations, info, path.stat().st_size, figures[0])


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Film:
    path = tmp_path_factory.mktemp("film") / "film.gif"
    text = LONG_TEXT[:40]
    alignments = [soft_alignment(120, len(text), width) for width in (20, 8, 3, 1)]
    mels = [some_mel(120, seed) * scale for seed, scale in enumerate((0.1, 0.2, 0.5, 1.0))]
    titles = [f"epoch {i}" for i in (1, 2, 3, 4)]
    film = make_film(path, alignments, text, titles, HOP_SECONDS, frame_seconds=0.2, mels=mels)
    assert os.listdir(path.parent) == ["film.gif"]
    return film


def test_film_has_every_frame_loops_and_holds_the_last(film):
    assert len(film.frames) == 4
    assert film.frames[0].shape == (400, 640, 3)
    assert film.durations == [200, 200, 200, 1000 * pictures.LAST_FRAME_SECONDS]
    assert film.info["loop"] == 0  # for ever
    assert film.n_bytes / 4 < 1e6 / 30  # 30 frames stay below 1 MB, even with noise as mel


def test_film_moves_in_its_pictures_and_nowhere_else(film):
    for before, after in pairwise(film.frames):
        changed = np.abs(after - before).sum(axis=-1) > 0
        for panel in (0, 1):  # mel and alignment
            assert changed[inside(film.figure, panel)].any()
            changed[inside(film.figure, panel)] = False
        title = slice(inside(film.figure, 0)[0].start)
        assert changed[title].any()  # its number
        changed[title] = False
        assert not changed.any()


def test_film_does_not_jump_with_its_titles(tmp_path):
    titles = ["x", "|Å| gj"]
    film = make_film(
        tmp_path / "film.gif", [soft_alignment(30, 10)] * 2, titles=titles, hop_seconds=0.1
    )
    top = inside(film.figure, 0)[0].start
    first, second = film.frames
    assert (first != second)[:top].any()
    np.testing.assert_array_equal(first[top:], second[top:])


def test_film_frame_looks_like_the_figure(tmp_path):
    alignment = np.zeros((10, 8))
    alignment[7, 2] = 1.0
    film = make_film(tmp_path / "film.gif", [np.full((10, 8), 0.1), alignment])
    for x, y, value in ((7.5, 2, 1.0), (6.5, 2, 0.0), (7.5, 3, 0.0), (2.5, 5, 0.0)):
        pixel = pixel_at(film.figure, 0, x, y, film.frames[1])
        np.testing.assert_allclose(pixel, colour_of(value), atol=4)


def test_film_keeps_one_mel_range_for_all_frames(tmp_path):
    flat = [np.full((10, 80), value) for value in (0.0, 1.0)]
    film = make_film(tmp_path / "film.gif", [soft_alignment(10, 5)] * 2, mels=flat)
    for frame, value in zip(film.frames, (0.0, 1.0), strict=True):
        np.testing.assert_allclose(pixel_at(film.figure, 0, 5, 40, frame), colour_of(value), atol=4)


# Errors


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda path: summary_figure(None, np.zeros((4, 80)), np.zeros(3)),
            r"alignment must be .*\(3,\)",
        ),
        (
            lambda path: summary_figure(None, np.zeros((4, 80)), np.zeros((1, 4, 3))),
            r"alignment must be .*\(1, 4, 3\)",
        ),
        (
            lambda path: summary_figure(None, np.zeros((4, 80)), np.zeros((0, 3))),
            r"alignment must be .*\(0, 3\)",
        ),
        (
            lambda path: summary_figure(None, np.zeros((4, 80)), np.zeros((4, 3)), "abcd"),
            r"text must have .*3.*got 4",
        ),
        (
            lambda path: summary_figure(None, np.zeros((1, 4, 80)), np.zeros((4, 3))),
            r"mel_predicted must be .*\(1, 4, 80\)",
        ),
        (
            lambda path: summary_figure(None, np.zeros((5, 80)), np.zeros((4, 3))),
            r"same T_mel, got 5 and 4",
        ),
        (
            lambda path: summary_figure(np.zeros(5), np.zeros((4, 80)), np.zeros((4, 3))),
            r"mel_true must be .*\(5,\)",
        ),
        (lambda path: loss_figure([]), "history must hold .*empty list"),
        (lambda path: loss_figure([{"epoch": 1}]), r"history must hold numbers.*\['epoch'\]"),
        (lambda path: alignment_film([], path), "alignments must be .*at least one.*got 0"),
        (
            lambda path: alignment_film([np.zeros((4, 3)), np.zeros((5, 3))], path),
            r"alignments must have one shape .*\(4, 3\), \(5, 3\)",
        ),
        (
            lambda path: alignment_film([np.zeros((4, 3)), np.zeros(4)], path),
            r"alignments\[1\] must be .*\(4,\)",
        ),
        (
            lambda path: alignment_film([np.zeros((4, 3))], path, mels=[]),
            r"mels must be one per frame \(1\), got 0",
        ),
        (
            lambda path: alignment_film([np.zeros((4, 3))], path, titles=["a", "b"]),
            r"titles must be one per frame \(1\), got 2",
        ),
    ],
)
def test_wrong_input_is_named(draw, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "film.gif")
    assert os.listdir(tmp_path) == []


# A run of a week


def test_nothing_is_left_open(tmp_path):
    def n_figures() -> int:
        gc.collect()
        return sum(type(thing) is Figure for thing in gc.get_objects())

    before = n_figures()
    figures = [
        summary_figure(None, some_mel(20), soft_alignment(20, 10)),
        loss_figure(HISTORY),
    ]
    for i, figure in enumerate(figures):
        save_figure(figure, tmp_path / f"{i}.png")
        figure_to_array(figure)
    left = [weakref.ref(figure) for figure in figures]
    del figures, figure
    gc.collect()
    assert [reference() for reference in left] == [None] * 2
    alignment_film([soft_alignment(20, 10)] * 2, tmp_path / "film.gif")
    assert n_figures() == before
    assert plt.get_fignums() == []


def test_import_leaves_pyplot_and_the_siblings_alone():
    code = """if True:
        import sys, plotting
        unwanted = {"matplotlib.pyplot", "torch", "tokenizer", "dataset", "model", "train_taco"}
        print(unwanted & set(sys.modules))
    """
    folder = os.path.dirname(pictures.__file__)
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
