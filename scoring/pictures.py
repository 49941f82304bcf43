"""Pictures of a training run: alignments, mels, losses, and the alignment film (GIF); histograms.

    save_figure(summary_figure(mel_true, mel, alignment, "Hello there.", 256 / 22050), "a.png")
    alignment_film(one_alignment_per_epoch, "film.gif", text="Hello there.", mels=one_mel_per_epoch)

An alignment is (T_mel, T_text) and a mel is (T_mel, num_mels): numpy arrays, or detached float
tensors on the CPU. Figures are built without pyplot: pyplot keeps every figure it makes until it
is told to close it, which a run of a week would feel, and it picks a backend for the whole process.
"""

import math
import os
import re
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike
from PIL import Image

from command_line.files import write_whole

DPI = 100
FIGURE_WIDTH = 8.0  # inches
MEL_HEIGHT = 1.7  # inches
CHARACTER_HEIGHT = 0.095  # inches an alignment grows per character, between the limits below
ALIGNMENT_HEIGHT_LIMITS = (2.2, 5.7)  # inches; the upper one is 60 characters, each with its label
MARGIN_HEIGHT = 0.8  # inches for the title and the time axis
FONT_SIZE = 8  # points
LABEL_SIZE = 6.5  # points, the characters or words beside an alignment
LABEL_FONT = "DejaVu Sans Mono"  # comes with matplotlib, and has a glyph for VISIBLE_SPACE
VISIBLE_SPACE = "␣"
CHARACTER_SPACING = 6.2  # points; characters closer than this are labelled word by word
WORD_SPACING = 7.0  # points; a word closer than this to the label below it goes without
TITLE_CHARACTERS_PER_INCH = 11  # where a title wraps
COLOUR_MAP = "magma"  # one for mels and alignments, so that a film's small palette is enough
PATH_COLOUR = "#4de3ff"  # of the arg-max; not in COLOUR_MAP
PATH_BELOW = 6.0  # pixels; where a character's row is less high, the arg-max is marked,
PATH_SHARE = 0.1  # if it has as much attention: one that is spread out must not look sharp
TRAIN_COLOUR, VAL_COLOUR, OTHER_COLOUR, FREE_COLOUR = "#3b6fb6", "#e07b39", "#555555", "#2f9e6e"

SHEET_WIDTH, SHEET_COLUMNS = 11.0, 3  # inches; the first panel is two columns wide
SHEET_ROW, SHEET_HEIGHT = 2.2, 18.0  # inches; rows are less high where the sheet would be higher
SCORES = ("score", "focus", "coverage", "monotonicity", "stopped_by_itself")  # between 0 and 1

FILM_SIZE = (6.4, 4.0)  # inches
FILM_COLOURS, FILM_GREYS = 48, 15  # of COLOUR_MAP, and for text; a smaller palette compresses more
LAST_FRAME_SECONDS = 2.5  # at least this long, so that the result can be looked at


def summary_figure(
    mel_true: ArrayLike | None,
    mel_predicted: ArrayLike,
    alignment: ArrayLike,
    text: str | None = None,
    hop_seconds: float | None = None,
    title: str | None = None,
) -> Figure:
    """True mel (left out when None), predicted mel and alignment over one time axis.

    mel_predicted (T_mel, num_mels) belongs to alignment (T_mel, T_text); mel_true may be longer or
    shorter, as it is beside a free-running prediction. Both mels share one colour range.
    text has T_text characters; hop_seconds are the seconds per mel frame, and without them time
    counts decoder steps.
    """
    mels = {"mel": _checked("mel_predicted", mel_predicted, "(T_mel, num_mels)")}
    if mel_true is not None:
        true = _checked("mel_true", mel_true, "(T_mel, num_mels)")
        mels = {"true mel": true, "predicted mel": mels["mel"]}
    alignment = _checked("alignment", alignment, "(T_mel, T_text)")
    figure = _new_figure(MEL_HEIGHT * len(mels) + _alignment_height(alignment) + MARGIN_HEIGHT)
    _draw_stack(figure, mels, alignment, text, title, hop_seconds)
    return figure


def loss_figure(history: Sequence[dict]) -> Figure:
    """Curves over epochs. Each dict is an epoch: "epoch" and any numbers, of which some may lack.

    `train_X` and `val_X` share a panel, so do a score `X` and `free_running_X`, and any other
    number has its own; "loss" is the large one. A legend ends with the curve's last value. Scores
    are drawn from 0 to 1: magnified, a coverage that goes from 1 to 0.996 would look like a
    collapse.
    """
    if not history:
        raise ValueError("history must hold at least one epoch, got an empty list.")
    keys = {key for row in history for key, value in row.items() if _is_number(value)}
    names = {re.sub("^(train|val|free_running)_", "", key) for key in keys - {"epoch", "step"}}
    if not names:
        raise ValueError(f"history must hold numbers to draw, got only {sorted(history[0])}.")
    names = sorted(names, key=_place_in_sheet)
    n_rows = math.ceil((1 + len(names)) / SHEET_COLUMNS)
    figure = _new_figure(min(SHEET_ROW * n_rows + MARGIN_HEIGHT, SHEET_HEIGHT), SHEET_WIDTH)
    grid = figure.add_gridspec(n_rows, SHEET_COLUMNS, height_ratios=[1.3] + [1.0] * (n_rows - 1))
    for i, name in enumerate(names, start=1):
        cell = grid[0, :2] if i == 1 else grid[i // SHEET_COLUMNS, i % SHEET_COLUMNS]
        _draw_curves(figure.add_subplot(cell), name, history)
    _settle_layout(figure)
    return figure


def histogram_figure(panels: dict[str, ArrayLike]) -> Figure:
    """A histogram for each name, of its numbers (n,), with their median; two per row."""
    n_rows = math.ceil(len(panels) / 2)
    figure = _new_figure(2.3 * n_rows)
    for i, (name, values) in enumerate(panels.items()):
        axes = figure.add_subplot(n_rows, 2, i + 1)
        axes.hist(values, bins=30, color=TRAIN_COLOUR)
        median = float(np.median(values))
        axes.axvline(median, color=VAL_COLOUR, lw=1.2)
        axes.set_title(f"median {median:.3g}", fontsize=FONT_SIZE, color=VAL_COLOUR, loc="right")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(name, fontsize=FONT_SIZE)
        axes.set_ylabel("clips", fontsize=FONT_SIZE)
        axes.tick_params(labelsize=FONT_SIZE - 1, length=2)
        axes.spines[["top", "right"]].set_visible(False)
    _settle_layout(figure)
    return figure


def alignment_film(
    alignments: Sequence[ArrayLike],
    path: str | os.PathLike,
    text: str | None = None,
    titles: Sequence[str] | None = None,
    hop_seconds: float | None = None,
    frame_seconds: float = 0.3,
    mels: Sequence[ArrayLike] | None = None,
) -> None:
    """One sentence over the epochs as a looping GIF: alignments (T_mel, T_text), all of one shape.

    `mels`, a (T_mel, num_mels) per alignment, are drawn above. All frames share one layout and one
    colour range, so that nothing moves but what the model learnt. The last frame stays longer.
    """
    alignments = _checked_frames("alignments", alignments, "(T_mel, T_text)", len(alignments))
    if mels is not None:
        mels = _checked_frames("mels", mels, "(T_mel, num_mels)", len(alignments))
    if titles is not None and len(titles) != len(alignments):
        raise ValueError(f"titles must be one per frame ({len(alignments)}), got {len(titles)}.")
    titles = titles or [None] * len(alignments)

    figure = _new_figure(FILM_SIZE[1], FILM_SIZE[0])
    first_mel = {"mel": mels[0]} if mels else {}
    panels = _draw_stack(figure, first_mel, alignments[0], text, titles[0], hop_seconds, mels)
    pictures = []
    for i, title in enumerate(titles):
        if mels:
            panels[0].images[0].set_data(mels[i].T)
        _show_alignment(panels[-1], alignments[i], hop_seconds)
        _set_title(panels[0], title)
        picture = Image.fromarray(figure_to_array(figure))
        # Dither would be noise, which GIF cannot compress.
        pictures.append(picture.quantize(palette=_film_palette(), dither=Image.Dither.NONE))
    seconds = [frame_seconds] * (len(pictures) - 1) + [max(frame_seconds, LAST_FRAME_SECONDS)]
    options = {
        "save_all": True,
        "append_images": pictures[1:],
        "duration": [round(1000 * s) for s in seconds],
        "loop": 0,  # for ever
    }
    write_whole(path, lambda file: pictures[0].save(file, format="GIF", **options))


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a PNG, whole or not at all; the same figure gives the same bytes."""
    metadata = {"Software": None}  # the default is matplotlib's version
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=DPI, metadata=metadata))


def figure_to_array(figure: Figure) -> np.ndarray:
    """The figure's pixels, (height, width, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _new_figure(height: float, width: float = FIGURE_WIDTH) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _settle_layout(figure: Figure) -> None:
    """Lays out once: again at every draw would move a pixel here and there, and make films jump."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _film_palette() -> Image.Image:
    """Every colour a film needs, known beforehand: a palette of a frame's own would flicker."""
    colours = colormaps[COLOUR_MAP](np.linspace(0, 1, FILM_COLOURS))
    greys = [to_rgba(str(grey)) for grey in np.linspace(0, 1, FILM_GREYS)]
    palette = np.array([*colours, *greys, to_rgba(PATH_COLOUR)])[:, :3]
    picture = Image.new("P", (1, 1))
    picture.putpalette((255 * palette).round().astype(np.uint8).tobytes())
    return picture


def _alignment_height(alignment: np.ndarray) -> float:
    return float(np.clip(alignment.shape[1] * CHARACTER_HEIGHT, *ALIGNMENT_HEIGHT_LIMITS))


def _draw_stack(
    figure: Figure,
    mels: dict[str, np.ndarray],
    alignment: np.ndarray,
    text: str | None,
    title: str | None,
    hop_seconds: float | None,
    mels_of_range: Sequence[np.ndarray] | None = None,
) -> list[Axes]:
    """Named mels, the last of them the alignment's, then the alignment. Returns their panels.

    The mels' colours span all `mels_of_range`, or else the mels drawn.
    """
    arrays = [*mels.values(), alignment]
    if mels and len(arrays[-2]) != len(alignment):
        lengths = f"{len(arrays[-2])} and {len(alignment)}"
        raise ValueError(f"a mel and its alignment must have the same T_mel, got {lengths}.")
    alignment_height = figure.get_figheight() - MARGIN_HEIGHT - MEL_HEIGHT * len(mels)
    heights = [MEL_HEIGHT] * len(mels) + [max(alignment_height, 1.3 * MEL_HEIGHT)]
    grid = {"height_ratios": heights}
    panels = figure.subplots(len(heights), squeeze=False, sharex=True, gridspec_kw=grid)[:, 0]
    # 0 to 1 always, so that an alignment that is spread out looks dark and not like a sharp one.
    ranges = [_finite_range(mels_of_range or arrays[:-1])] * len(mels) + [(0.0, 1.0)]
    for axes, array, colour_range in zip(panels, arrays, ranges, strict=True):
        _draw_image(axes, array, hop_seconds, *colour_range)
    for axes, name in zip(panels, [*(f"{name} (bin)" for name in mels), "character"], strict=True):
        axes.set_ylabel(name, fontsize=FONT_SIZE)
    panels[-1].set_xlim(0, max(map(len, arrays)) * (hop_seconds or 1))
    _label_time(panels[-1], hop_seconds)
    _set_title(panels[0], title)
    if text is not None:
        _label_text(panels[-1], text, alignment.shape[1])
    _settle_layout(figure)
    _show_alignment(panels[-1], alignment, hop_seconds)
    return list(panels)


def _draw_image(
    axes: Axes, values: np.ndarray, hop_seconds: float | None, vmin: float, vmax: float
) -> None:
    """values (T_mel, n): frame t covers t to t + 1 hops on x, row k is centred on k, upwards."""
    n_frames, n = values.shape
    extent = (0, n_frames * (hop_seconds or 1), -0.5, n - 0.5)
    look = {"cmap": COLOUR_MAP, "vmin": vmin, "vmax": vmax, "aspect": "auto"}
    image = axes.imshow(values.T, origin="lower", extent=extent, **look)
    bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.01, 0, 0.015, 1)))
    for ticks in (axes, bar.ax):
        ticks.tick_params(labelsize=FONT_SIZE - 1, length=2)
        ticks.yaxis.set_major_locator(MaxNLocator(5, integer=ticks is axes))


def _show_alignment(axes: Axes, alignment: np.ndarray, hop_seconds: float | None) -> None:
    """Puts an alignment (T_mel, T_text) into its panel, when the layout is settled.

    Where cells are smaller than pixels, a pixel shows their maximum, as their mean would darken
    the line that matters; where rows are narrow, the arg-max of each frame is marked.
    """
    (n_frames, n), hop = alignment.shape, hop_seconds or 1
    # A block of cells for each pixel, filled up with zeros at the end.
    frames = math.ceil(n_frames / axes.bbox.width)
    characters = math.ceil(n / axes.bbox.height)
    padded = np.pad(alignment, ((0, -n_frames % frames), (0, -n % characters)))
    blocks = padded.reshape(len(padded) // frames, frames, -1, characters)
    axes.set_ylim(-0.5, n - 0.5)
    image = axes.images[0]
    image.set_data(blocks.max(axis=(1, 3)).T)
    image.set_extent((0, len(padded) * hop, -0.5, padded.shape[1] - 0.5))
    image.set_interpolation("nearest")  # the default takes a mean where cells are a pixel or two
    for path in axes.lines:
        path.remove()
    if axes.bbox.height < PATH_BELOW * n:
        middles = (np.arange(n_frames) + 0.5) * hop
        marked = alignment.max(axis=1) >= PATH_SHARE
        # Single pixels: a line would also join the two ends of a jump.
        axes.plot(middles[marked], alignment.argmax(axis=1)[marked], ",", color=PATH_COLOUR)


def _label_time(axes: Axes, hop_seconds: float | None) -> None:
    axes.set_xlabel("seconds" if hop_seconds else "decoder step", fontsize=FONT_SIZE)


def _set_title(axes: Axes, title: str | None) -> None:
    if title:
        n_characters = int(axes.figure.get_figwidth() * TITLE_CHARACTERS_PER_INCH)
        lines = textwrap.fill(title, n_characters)
        axes.set_title(lines, fontsize=FONT_SIZE + 1, parse_math=False)  # "$5 or $6" is no formula


def _split_symbols(text: str) -> list[str]:
    """Characters, and of phonemes in braces, "{T ER1 N}", each phoneme."""
    parts = re.split(r"\{([A-Z0-9 ]+)\}", text)
    return [symbol for i, part in enumerate(parts) for symbol in (part.split() if i % 2 else part)]


def _label_text(axes: Axes, text: str, n_characters: int) -> None:
    """Labels y with the characters where they fit, else with the words, each at its middle."""
    symbols = _split_symbols(text)
    if len(symbols) != n_characters:
        raise ValueError(
            f"text must have one character per alignment column ({n_characters}), "
            f"got {len(symbols)} characters."
        )
    axes.figure.get_layout_engine().execute(axes.figure)  # the height is known only after layout
    inches = axes.get_position().height * axes.figure.get_figheight()
    points_per_character = inches * 72 / len(symbols)
    if points_per_character >= CHARACTER_SPACING:
        places = list(range(len(symbols)))
        labels = [VISIBLE_SPACE if symbol.isspace() else symbol for symbol in symbols]
    else:
        places, labels = [], []
        in_place = "".join(" " if symbol.isspace() else "x" for symbol in symbols)
        for word in re.finditer("x+", in_place):
            middle = (word.start() + word.end() - 1) / 2
            if not places or (middle - places[-1]) * points_per_character >= WORD_SPACING:
                places.append(middle)
                labels.append("".join(symbols[slice(*word.span())]))
    axes.set_yticks(places, labels, family=LABEL_FONT, fontsize=LABEL_SIZE, parse_math=False)
    axes.set_ylabel(None)


def _place_in_sheet(name: str) -> tuple:
    """Sorts panels: loss and score beside each other, the losses, what is no score, the scores."""
    order = (name == "loss", name == "score", name.endswith("loss"), not name.endswith(SCORES))
    return *(not first for first in order), name


def _draw_curves(axes: Axes, name: str, history: Sequence[dict]) -> None:
    is_score, free = name.endswith(SCORES), f"free_running_{name}"
    is_free_too = any(_is_number(row.get(free)) for row in history)
    styles = {
        f"train_{name}": (TRAIN_COLOUR, "training"),
        f"val_{name}": (VAL_COLOUR, "validation"),
        name: (OTHER_COLOUR, "teacher forced" if is_free_too else None),
        free: (FREE_COLOUR, "free running"),
    }
    drawn = {}  # the values by key
    for key, (colour, label) in styles.items():
        points = [
            (row.get("epoch", i + 1), row[key])
            for i, row in enumerate(history)
            if _is_number(row.get(key))
        ]
        if points:
            epochs, drawn[key] = zip(*points, strict=True)
            last = drawn[key][-1]
            number = f"{last:.3f}" if is_score else f"{last:.3g}"
            label = label and f"{label} {number}"
            marker = "o" if len(points) <= 30 else None  # a single epoch would draw no line
            look = {"color": colour, "label": label, "marker": marker, "ms": 2.5, "lw": 1.2}
            axes.plot(epochs, drawn[key], **look)
    values = [value for curve in drawn.values() for value in curve]
    if name.endswith("loss") or name == "learning_rate":
        _use_log_scale(axes, values)
    elif is_score and min(values) >= 0 and max(values) <= 1:
        axes.set_ylim(-0.03, 1.03)  # with room for a line along 0 or 1
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", fontsize=FONT_SIZE)
    title = free if list(drawn) == [free] else name
    axes.set_title(title.replace("_", " "), fontsize=FONT_SIZE + 1, loc="left")
    axes.tick_params(labelsize=FONT_SIZE - 1, length=2)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        # Losses fall and scores rise, so this is where the end of the curves is not.
        place = "lower right" if is_score and values[-1] > 0.5 else "upper right"
        axes.legend(fontsize=FONT_SIZE - 1, frameon=False, loc=place)


def _use_log_scale(axes: Axes, values: list[float]) -> None:
    if not 0 < min(values) < max(values):
        return
    axes.set_yscale("log")
    # The default ticks are powers of ten, of which a loss that falls from 3 to 1.2 has none.
    few_decades = max(values) < 10 * min(values)
    axes.yaxis.set_major_locator(MaxNLocator(5) if few_decades else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def _finite_range(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
    """Smallest and largest finite value: a diverged model's NaN must not blank the whole film."""
    finite = np.concatenate([np.zeros(0), *(array[np.isfinite(array)] for array in arrays)])
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def _checked(name: str, values: ArrayLike, shape: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float32)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} must be {shape} and not empty, got shape {values.shape}.")
    return values


def _checked_frames(
    name: str, frames: Sequence[ArrayLike], shape: str, n_frames: int
) -> list[np.ndarray]:
    if len(frames) == 0 or len(frames) != n_frames:
        raise ValueError(
            f"{name} must be one per frame ({n_frames or 'at least one'}), got {len(frames)}."
        )
    frames = [_checked(f"{name}[{i}]", frame, shape) for i, frame in enumerate(frames)]
    shapes = sorted({frame.shape for frame in frames})
    if len(shapes) > 1:
        raise ValueError(f"{name} must have one shape {shape} in all frames, got {shapes}.")
    return frames
