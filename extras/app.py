"""Serve a page to try a voice: type a text, hear it, see the spoken word, the mel, the alignment.

    python -m extras.app --checkpoint work_dir/tacotron2

Needs requirements/app.txt. --checkpoint takes checkpoints, and folders with checkpoints below them.
The page offers all of them, and vocoders: those of --vocoder, the names that synthesize.py takes,
and Griffin-Lim. It loads the checkpoint again for each text, so that you hear the newest one of a
run that is still training.

Only this machine can open the page, and the page asks no other machine for anything: the server
listens on 127.0.0.1, and a Content-Security-Policy makes the browser refuse other hosts.
"""

import base64
import html
import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile
import torch

from command_line.files import (
    DataError,
    count_argument,
    file_errors,
    import_extra,
    one_line,
    path_argument,
)
from command_line.flags import FlagParser
from command_line.main import say, script
from speech.report import describe_result, find_faults
from speech.speaking import PAUSE_MS, PAUSES, SpeakingOptions, Synthesis, encode, speak
from speech.timings import Word, restore_words, time_words
from speech.vocoder import AUTO, PACKAGED, choose_vocoder
from speech.voice import CONFIG_FILE, WEIGHTS_FILE, Voice, add_device_flag, load_checkpoint
from text.markup import strip_markup
from text.splitting import split_text

if TYPE_CHECKING:
    import gradio

HOST = "127.0.0.1"
GRIFFIN_LIM = "Griffin-Lim"
MAX_TEXT = 2000  # characters, about two minutes of speech
STYLE = """
.piece { position: relative; margin-top: 1em }
.piece img { width: 100%; display: block }
.cursor { position: absolute; top: 0; height: 100%; width: 2px; background: #4de3ff; display: none }
.spoken audio { width: 100% }
.words .now { background: #4de3ff; color: black }
.problem { font-weight: bold; color: #b3261e }
"""
# followSound marks the word, and moves the cursor over the picture, that are being played.
HEAD = """
<meta http-equiv="Content-Security-Policy"
      content="default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'">
<script>
function followSound(player) {
  for (const piece of player.parentElement.querySelectorAll(".piece")) {
    const place = (player.currentTime - piece.dataset.start) / piece.dataset.seconds;
    const cursor = piece.querySelector(".cursor"), [left, right] = piece.dataset.span.split(" ");
    cursor.style.display = place >= 0 && place <= 1 ? "block" : "none";
    cursor.style.left = `${100 * (+left + place * (right - left))}%`;
  }
  for (const word of player.parentElement.querySelectorAll(".words span")) {
    const isNow = word.dataset.start <= player.currentTime && player.currentTime < word.dataset.end;
    word.classList.toggle("now", isNow);
  }
  if (!player.paused) requestAnimationFrame(() => followSound(player));
}
</script>"""


def find_checkpoints(folders: list[str]) -> list[str]:
    """List the checkpoints that these folders are or contain, each once, the newest first."""
    times: dict[str, float] = {}
    for folder in folders:
        weights = [path.parent / WEIGHTS_FILE for path in Path(folder).rglob(CONFIG_FILE)]
        found = {str(path.parent): path.stat().st_mtime for path in weights if path.is_file()}
        if not found:
            files = f"{CONFIG_FILE} and {WEIGHTS_FILE}"
            raise DataError(f"--checkpoint {folder}: there is no checkpoint in it, with {files}")
        times |= found
    return sorted(times, key=times.get, reverse=True)


def data_url(kind: str, content: io.BytesIO) -> str:
    """Return a URL that holds a file's content itself."""
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def draw_piece(text: str, result: Synthesis, voice: Voice) -> tuple[str, float, float]:
    """Draw mel and alignment; return the PNG's URL and where its time axis is, from 0 to 1."""
    from scoring.pictures import summary_figure  # matplotlib is slow to import

    spoken = voice.tokenizer.decode(encode(text, voice))
    hop_seconds = voice.audio_config.hop_seconds
    figure = summary_figure(None, result.mel, result.alignment, spoken, hop_seconds)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    place = figure.axes[0].get_position()
    return data_url("image/png", content), place.x0, place.x1


def describe_piece(text: str, result: Synthesis, voice: Voice) -> str:
    """Describe how a piece was spoken: its text, length, ending, score and what looks wrong."""
    tokens = encode(text, voice)
    parts = [describe_result(result, len(result.wav) / voice.audio_config.sampling_rate)]
    if unknown := voice.tokenizer.unknown_characters(text):
        parts.append(f"left out {unknown!r}, which the checkpoint has no symbols for")
    parts += find_faults(result, tokens, voice)
    return f"{voice.tokenizer.decode(tokens)} \N{EM DASH} {'; '.join(parts)}"


def show_piece(text: str, result: Synthesis, voice: Voice, start: float) -> str:
    """Make the HTML of one piece, whose sound starts at `start` seconds: a line and a picture."""
    picture, left, right = draw_piece(text, result, voice)
    seconds = len(result.wav) / voice.audio_config.sampling_rate
    return (
        f"<p>{html.escape(describe_piece(text, result, voice))}</p>"
        f'<div class="piece" data-start="{start:.4f}" data-seconds="{seconds:.4f}" '
        f'data-span="{left:.5f} {right:.5f}">'
        f'<img alt="mel and alignment" src="{picture}"><div class="cursor"></div></div>'
    )


def show_words(words: list[Word]) -> str:
    """Make the HTML of the words, of which followSound marks the one that is spoken."""
    spans = (
        f'<span data-start="{start:.3f}" data-end="{end:.3f}">{html.escape(word)}</span>'
        for word, start, end in words
    )
    return f'<p class="words">{" ".join(spans)}</p>'


def speak_text(text: str, voice: Voice, options: SpeakingOptions) -> str:
    """Speak a text; return the HTML of a player and of its pieces."""
    if not text.strip():
        raise DataError("There is no text yet: type a sentence first.")
    text, tags = strip_markup(text)
    encode(text, voice)  # refuses a text without a letter
    rate, sounds, blocks, n_samples = voice.audio_config.sampling_rate, [], [], 0
    words: list[Word] = []
    if tags:
        blocks.append(f"<p>left out the tags {html.escape(' '.join(tags))}</p>")
    pieces = split_text(text, voice.tokenizer, voice.max_characters)
    results = speak((piece.text for piece in pieces), voice, options)
    for piece, result in zip(pieces, results, strict=True):
        blocks.append(show_piece(piece.text, result, voice, n_samples / rate))
        words += time_words(piece.text, result, voice, n_samples / rate)
        pause = torch.zeros(round(PAUSE_MS / 1000 * PAUSES[piece.end] * rate))
        sounds += [result.wav, pause]
        n_samples += len(result.wav) + len(pause)
    content = io.BytesIO()
    soundfile.write(content, torch.cat(sounds[:-1]).numpy(), rate, format="WAV")
    return (
        f'<div class="spoken"><audio controls src="{data_url("audio/wav", content)}" '
        'onplay="followSound(this)" onseeked="followSound(this)"></audio>'
        f"{show_words(restore_words(text, words, voice.tokenizer.clean))}{''.join(blocks)}</div>"
    )


def answer(text: str, checkpoint: str, vocoder: str, seed: float | None, device: str) -> str:
    """Return what the page shows for its fields' values: sound and pictures, or one sentence."""
    try:
        voice, notes = load_checkpoint(checkpoint, device), []
        name = None if vocoder == GRIFFIN_LIM else vocoder
        hifi_gan = choose_vocoder(name, voice.audio_config, device, notes.append)
        shown = speak_text(text, voice, SpeakingOptions(seed=int(seed or 0), vocoder=hifi_gan))
        return shown + "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    except DataError as error:
        return f'<p class="problem" role="alert">{html.escape(one_line(error, None))}</p>'


def make_page(checkpoints: list[str], vocoders: list[str], device: str) -> "gradio.Blocks":
    """Make the page: its fields, its button, and the place for what `answer` returns."""
    gr = import_extra("gradio", "the page", "requirements/app.txt")
    vocoders = list(dict.fromkeys([*vocoders, AUTO, *PACKAGED, GRIFFIN_LIM]))  # each once
    with gr.Blocks(title="Tacotron 2", analytics_enabled=False) as page:
        text = "Can you hear my new voice?"
        fields = [
            gr.Textbox(text, label="Text", lines=3, max_length=MAX_TEXT),
            gr.Dropdown(checkpoints, value=checkpoints[0], label="Checkpoint"),
            gr.Dropdown(vocoders, value=vocoders[0], label="Vocoder"),
            gr.Number(42, precision=0, minimum=0, maximum=2**31, label="Seed of the dropout"),
        ]
        button = gr.Button("Speak", variant="primary")
        button.click(partial(answer, device=device), fields, gr.HTML(), api_name=False)
    return page


def launch(page: "gradio.Blocks", port: int | None) -> str:
    """Serve the page in the background; return its address."""
    from starlette.middleware import Middleware  # comes with gradio
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # Another site whose name resolves to 127.0.0.1 must not be able to read the page.
    own_names = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    with file_errors():  # such as a port that is taken
        _, url, _ = page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            quiet=True,
            ssr_mode=False,
            css=STYLE,
            head=HEAD,
            footer_links=[],
            run_history=False,
            prevent_thread_lock=True,
            app_kwargs={"middleware": [own_names]},
        )
    return url


@script
def main(argv: list[str] | None = None) -> None:
    """Serve the page until Ctrl-C."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--checkpoint", type=path_argument, nargs="+", required=True, help="folders of checkpoints")
    add("--vocoder", type=path_argument, nargs="+", default=[], help="the first ones to offer")
    add("--port", type=partial(count_argument, most=65535), help="if unset, a free one from 7860")
    add_device_flag(parser)
    args = parser.parse_args(argv)
    page = make_page(find_checkpoints(args.checkpoint), args.vocoder, args.device)
    say(f"{launch(page, args.port)}  (Ctrl-C ends it)")
    page.block_thread()


if __name__ == "__main__":
    main()
