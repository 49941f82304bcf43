"""Draw mels and alignments, curves over epochs, the alignment film (GIF) and histograms.

    save_figure(summary_figure(true_mel, mel, alignment, "Hello.", 256 / 22050), "a.png")
    alignment_film(alignments, "film.gif", "Hello.", titles, 256 / 22050, mels)  # of each epoch

Alignments are (T_mel, T_text) and mels (T_mel, num_mels): arrays, or detached tensors on the CPU.
Figures are built without pyplot, which would keep each of them in memory until it is closed.
"""

import math
import os
import re
import textwrap
from collections.abc import Iterable, Sequence

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
MEL_HEIGHT, MARGIN_HEIGHT = 1.7, 0.8  # inches; the margin is for the title and the time axis
CHARACTER_HEIGHT = 0.095  # inches per character of an alignment, within these limits:
ALIGNMENT_HEIGHTS = (2.2, 5.7)  # inches; 5.7 is enough to label each of 60 characters
FONT_SIZE, LABEL_SIZE = 8, 6.5  # points; LABEL_SIZE is for the text beside an alignment
LABEL_FONT = "DejaVu Sans Mono"  # comes with matplotlib and has the glyph "␣"
CHARACTER_SPACING = 6.2  # points; characters closer than this are labelled word by word
MAX_LABEL = 24  # characters of a word; some languages have no spaces
WORD_SPACING = 7.0  # points; words closer than this to the label below get none
COLOUR_MAP, PATH_COLOUR = "magma", "#4de3ff"  # PATH_COLOUR marks the arg-max; it is not in magma
PATH_BELOW = 6.0  # pixels; the arg-max is marked if the rows of an alignment are lower than this,
PATH_SHARE = 0.1  # in frames that give it this much attention: a blur must not look sharp
TRAIN_COLOUR, VAL_COLOUR, OTHER_COLOUR, FREE_COLOUR = "#3b6fb6", "#e07b39", "#555555", "#2f9e6e"
# Ends of the names of numbers between 0 and 1
SCORES = ("score", "match", "focus", "coverage", "monotonicity", "stopped_by_itself")
FRAME_MS, LAST_FRAME_MS = 300, 2500  # of the film; viewers can look at the result


def summary_figure(
    mel_true: ArrayLike | None,
    mel_predicted: ArrayLike,
    alignment: ArrayLike,
    text: str,
    hop_seconds: float,
    title: str = "",
) -> Figure:
    """Draw the true mel (unless None), the predicted mel and its alignment over one time axis.

    The mels may differ in length and share one colour range. `text` has T_text characters, in which
    "{T ER1 N}" counts as three phonemes.
    """
    mels, alignment = {"mel": np.asarray(mel_predicted)}, np.asarray(alignment)
    if mel_true is not None:
        mels = {"true mel": np.asarray(mel_true), "predicted mel": mels["mel"]}
    height = np.clip(alignment.shape[1] * CHARACTER_HEIGHT, *ALIGNMENT_HEIGHTS)
    figure = new_figure(8.0, MEL_HEIGHT * len(mels) + height + MARGIN_HEIGHT)
    draw_stack(figure, mels, find_range(mels.values()), alignment, text, hop_seconds, title)
    return figure


def alignment_film(
    alignments: Sequence[ArrayLike],
    path: str | os.PathLike,
    text: str,
    titles: Sequence[str],
    hop_seconds: float,
    mels: Sequence[ArrayLike],
) -> None:
    """Write one sentence's mels and alignments over the epochs as a GIF that loops.

    The frames share one layout and one colour range: only what the model has learned moves.
    """
    alignments, mels = [np.asarray(a) for a in alignments], [np.asarray(mel) for mel in mels]
    figure, frames = new_figure(6.4, 4.0), []
    first, limits = {"mel": mels[0]}, find_range(mels)
    panels = draw_stack(figure, first, limits, alignments[0], text, hop_seconds, titles[0])
    for alignment, mel, title in zip(alignments, mels, titles, strict=True):
        panels[0].images[0].set_data(mel.T)
        show_alignment(panels[1], alignment, hop_seconds)
        set_title(panels[0], title)
        frame = Image.fromarray(figure_to_array(figure))
        # Dithering would be noise, which GIF cannot compress.
        frames.append(frame.quantize(palette=film_palette(), dither=Image.Dither.NONE))
    milliseconds = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    options = {"save_all": True, "append_images": frames[1:], "duration": milliseconds, "loop": 0}
    write_whole(path, lambda file: frames[0].save(file, format="GIF", **options))


def loss_figure(history: Sequence[dict]) -> Figure:
    """Draw curves over epochs from one dict per epoch, with "epoch" and any numbers by name.

    `train_X` and `val_X` share a panel, and so do a score `X` and `free_running_X`; "loss" has the
    large one. A score's axis goes from 0 to 1, as a fall to 0.996 is no collapse.
    """
    keys = {key for row in history for key, value in row.items() if is_number(value)}
    names = {re.sub("^(train|val|free_running)_", "", key) for key in keys - {"epoch", "step"}}
    if not names:
        raise ValueError("history holds no numbers to draw")
    names = sorted(
        names,
        key=lambda x: (x != "loss", x != "text_match", x[-4:] != "loss", x.endswith(SCORES), x),
    )
    n_rows = math.ceil((1 + len(names)) / 3)
    figure = new_figure(11.0, min(2.2 * n_rows + MARGIN_HEIGHT, 18.0))  # two screens at most
    grid = figure.add_gridspec(n_rows, 3, height_ratios=[1.3] + [1.0] * (n_rows - 1))
    for i, name in enumerate(names, start=1):
        cell = grid[0, :2] if i == 1 else grid[i // 3, i % 3]
        draw_curves(figure.add_subplot(cell), name, history)
    freeze_layout(figure)
    return figure


def histogram_figure(panels: dict[str, ArrayLike]) -> Figure:
    """Draw a histogram of the numbers (n,) under each name, with their median; two per row."""
    n_rows = math.ceil(len(panels) / 2)
    figure = new_figure(8.0, 2.3 * n_rows)
    for i, (name, values) in enumerate(panels.items()):
        axes = figure.add_subplot(n_rows, 2, i + 1)
        axes.hist(values, bins=30, color=TRAIN_COLOUR)
        median = float(np.median(values))
        axes.axvline(median, color=VAL_COLOUR, lw=1.2)
        axes.set_title(f"median {median:.3g}", fontsize=FONT_SIZE, color=VAL_COLOUR, loc="right")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(name, fontsize=FONT_SIZE)
        axes.set_ylabel("clips", fontsize=FONT_SIZE)
        thin_frame(axes)
    freeze_layout(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a PNG, whole or not at all; the same figure gives the same bytes."""
    metadata = {"Software": None}  # the default names matplotlib's version
    write_whole(path, lambda file: figure.savefig(file, format="png", metadata=metadata))


def figure_to_array(figure: Figure) -> np.ndarray:
    """Render a figure's pixels, (height, width, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def thin_frame(axes: Axes) -> None:
    axes.tick_params(labelsize=FONT_SIZE - 1, length=2)
    axes.spines[["top", "right"]].set_visible(False)


def freeze_layout(figure: Figure) -> None:
    """Lay the figure out once: a new layout at every draw would make films jump by a pixel."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def film_palette() -> Image.Image:
    """Make one palette of 64 colours: frames with palettes of their own would flicker."""
    colours = colormaps[COLOUR_MAP](np.linspace(0, 1, 48))
    greys = [to_rgba(str(grey)) for grey in np.linspace(0, 1, 15)]  # for the text
    palette = np.array([*colours, *greys, to_rgba(PATH_COLOUR)])[:, :3]
    picture = Image.new("P", (1, 1))
    picture.putpalette((255 * palette).round().astype(np.uint8).tobytes())
    return picture


def find_range(mels: Iterable[np.ndarray]) -> tuple[float, float]:
    """Find the smallest and the largest finite value: one NaN must not blank a whole picture."""
    finite = np.concatenate([mel[np.isfinite(mel)] for mel in mels])
    return (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)


def draw_stack(
    figure: Figure,
    mels: dict[str, np.ndarray],
    mel_range: tuple[float, float],
    alignment: np.ndarray,
    text: str,
    hop_seconds: float,
    title: str,
) -> Sequence[Axes]:
    """Draw mels by name above an alignment, and return the panels.

    An alignment's colours always go from 0 to 1, so that a blurred one looks dark, not sharp.
    """
    heights = [MEL_HEIGHT] * len(mels)
    rest = figure.get_figheight() - MARGIN_HEIGHT - sum(heights)
    grid = {"height_ratios": [*heights, max(rest, 1.3 * MEL_HEIGHT)]}
    *tops, bottom = panels = figure.subplots(len(mels) + 1, sharex=True, gridspec_kw=grid)
    for axes, (name, mel) in zip(tops, mels.items(), strict=True):
        draw_image(axes, mel, hop_seconds, *mel_range)
        axes.set_ylabel(f"{name} (bin)", fontsize=FONT_SIZE)
    draw_image(bottom, alignment, hop_seconds, 0, 1)
    bottom.set_xlim(0, max(map(len, [*mels.values(), alignment])) * hop_seconds)
    bottom.set_xlabel("seconds", fontsize=FONT_SIZE)
    set_title(panels[0], title)
    label_text(bottom, text, alignment.shape[1])
    freeze_layout(figure)
    show_alignment(bottom, alignment, hop_seconds)
    return panels


def draw_image(
    axes: Axes, values: np.ndarray, hop_seconds: float, vmin: float, vmax: float
) -> None:
    """Draw values (T_mel, n): frame t covers t to t + 1 hops on x, row k is centred on y = k."""
    n_frames, n = values.shape
    extent = (0, n_frames * hop_seconds, -0.5, n - 0.5)
    look = {"cmap": COLOUR_MAP, "vmin": vmin, "vmax": vmax, "aspect": "auto"}
    image = axes.imshow(values.T, origin="lower", extent=extent, **look)
    bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.01, 0, 0.015, 1)))
    for ticks in (axes, bar.ax):
        ticks.tick_params(labelsize=FONT_SIZE - 1, length=2)
        ticks.yaxis.set_major_locator(MaxNLocator(5, integer=ticks is axes))


def show_alignment(axes: Axes, alignment: np.ndarray, hop_seconds: float) -> None:
    """Put an alignment (T_mel, T_text) into its panel after the layout is frozen.

    Where cells are smaller than pixels, a pixel shows their maximum, because their mean would
    darken the line that matters. Where rows are low, the arg-max of each frame is marked.
    """
    n_frames, n = alignment.shape
    frames, characters = math.ceil(n_frames / axes.bbox.width), math.ceil(n / axes.bbox.height)
    padded = np.pad(alignment, ((0, -n_frames % frames), (0, -n % characters)))
    blocks = padded.reshape(len(padded) // frames, frames, -1, characters)  # one for each pixel
    axes.set_ylim(-0.5, n - 0.5)
    image = axes.images[0]
    image.set_data(blocks.max(axis=(1, 3)).T)
    image.set_extent((0, len(padded) * hop_seconds, -0.5, padded.shape[1] - 0.5))
    image.set_interpolation("nearest")  # the default averages cells of a pixel or two
    for path in axes.lines:
        path.remove()
    if axes.bbox.height < PATH_BELOW * n:
        middles = (np.arange(n_frames) + 0.5) * hop_seconds
        marked = alignment.max(axis=1) >= PATH_SHARE
        # Single pixels: a line would also join the two ends of a jump.
        axes.plot(middles[marked], alignment.argmax(axis=1)[marked], ",", color=PATH_COLOUR)


def set_title(axes: Axes, title: str) -> None:
    lines = textwrap.fill(title, int(11 * axes.figure.get_figwidth()))  # 11 per inch
    axes.set_title(lines, fontsize=FONT_SIZE + 1, parse_math=False)  # "$5 or $6" is no formula


def label_text(axes: Axes, text: str, n_characters: int) -> None:
    """Label y with the characters where they fit, else with the words, each at its middle."""
    parts = re.split(r"\{([A-Z0-9 ]+)\}", text)  # every second part is phonemes
    symbols = [s for i, part in enumerate(parts) for s in (part.split() if i % 2 else part)]
    if len(symbols) != n_characters:
        raise ValueError(f"text has {len(symbols)} characters, its alignment {n_characters}")
    symbols = ["␣" if symbol.isspace() else symbol for symbol in symbols]
    axes.figure.get_layout_engine().execute(axes.figure)  # the height is known only after layout
    inches = axes.get_position().height * axes.figure.get_figheight()
    points_per_character = inches * 72 / len(symbols)
    places, labels = list(range(len(symbols))), symbols
    if points_per_character < CHARACTER_SPACING:
        places, labels = [], []
        for word in re.finditer("x+", "".join("␣" if s == "␣" else "x" for s in symbols)):
            middle = (word.start() + word.end() - 1) / 2
            if not places or (middle - places[-1]) * points_per_character >= WORD_SPACING:
                places.append(middle)
                labels.append("".join(symbols[slice(*word.span())])[:MAX_LABEL])
    axes.set_yticks(places, labels, family=LABEL_FONT, fontsize=LABEL_SIZE, parse_math=False)


def draw_curves(axes: Axes, name: str, history: Sequence[dict]) -> None:
    """Draw all curves of one quantity: of training, validation, teacher forced, free running."""
    is_score, free = name.endswith(SCORES), f"free_running_{name}"
    styles = {
        f"train_{name}": (TRAIN_COLOUR, "training"),
        f"val_{name}": (VAL_COLOUR, "validation"),
        name: (OTHER_COLOUR, "teacher forced"),
        free: (FREE_COLOUR, "free running"),
    }
    drawn = {}  # values by key
    for key, (colour, label) in styles.items():
        rows = [(i, row) for i, row in enumerate(history, start=1) if is_number(row.get(key))]
        if rows:
            drawn[key] = [row[key] for _, row in rows]
            last = f"{drawn[key][-1]:.3f}" if is_score else f"{drawn[key][-1]:.3g}"
            marker = "o" if len(rows) <= 30 else None  # a single epoch would draw no line
            look = {"color": colour, "label": f"{label} {last}", "marker": marker, "ms": 2.5}
            axes.plot([row.get("epoch", i) for i, row in rows], drawn[key], lw=1.2, **look)
    values = [value for curve in drawn.values() for value in curve]
    if name.endswith("loss") or name == "learning_rate":
        use_log_scale(axes, values)
    elif is_score and min(values) >= 0 and max(values) <= 1:
        axes.set_ylim(-0.03, 1.03)  # leaves room for a line along 0 or 1
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", fontsize=FONT_SIZE)
    title = free if list(drawn) == [free] else name
    axes.set_title(title.replace("_", " "), fontsize=FONT_SIZE + 1, loc="left")
    axes.grid(alpha=0.25)
    thin_frame(axes)
    if list(drawn) != [name]:
        # Losses fall and scores rise, so the curves do not end in this corner.
        corner = "lower right" if is_score and values[-1] > 0.5 else "upper right"
        axes.legend(fontsize=FONT_SIZE - 1, frameon=False, loc=corner)


def use_log_scale(axes: Axes, values: list[float]) -> None:
    if not 0 < min(values) < max(values):
        return
    axes.set_yscale("log")
    # The default ticks are powers of ten, and between 1.2 and 3 there is none.
    few_decades = max(values) < 10 * min(values)
    axes.yaxis.set_major_locator(MaxNLocator(5) if few_decades else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)
