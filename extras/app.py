"""A page to try a voice: type a text, hear it, see its mel and alignment with a cursor.

    python -m extras.app --checkpoint work_dir/tacotron2 --vocoder UNIVERSAL_V1

Needs requirements/app.txt. --checkpoint takes checkpoints, and folders that have some below them;
the page offers all that are found, and --vocoder's beside Griffin-Lim. A checkpoint is read anew
for each text, so that one which training has replaced is not an old one.

The page is for this machine alone: the program listens on 127.0.0.1, and neither it nor the page
asks any other machine for anything. gradio's analytics and its history of runs are off, and a
Content-Security-Policy has the browser refuse what else a page could fetch.
"""

import argparse
import base64
import html
import io
import os
import socket
import sys
import wave
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from command_line.files import DataError, count_argument, import_extra, path_argument
from command_line.flags import FlagParser
from scoring.scores import describe_score
from speech.report import find_faults
from speech.speaking import PAUSES, Manner, Synthesis, encode, speak, to_pcm
from speech.vocoder import load_vocoder
from speech.voice import CONFIG_FILE, WEIGHTS_FILE, Voice, device_argument, load_checkpoint
from text.splitting import MAX_CHARACTERS, split_text

if TYPE_CHECKING:
    import fastapi
    import gradio
    import uvicorn

HOST = "127.0.0.1"
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"  # nothing of other hosts
GRIFFIN_LIM = "Griffin-Lim"
MAX_TEXT = 2000  # characters, some two minutes of speech
MAX_SEED = 2**53 - 1  # the largest whole number that a browser has
MAX_CANDIDATES = 8
PAUSE_SECONDS = 0.3  # between sentences, as synthesize.py has it
STYLE = """
.piece { position: relative; margin-top: 1em }
.piece img { width: 100%; display: block }
.cursor { position: absolute; top: 0; height: 100%; width: 2px; background: #4de3ff; display: none }
.spoken audio { width: 100% }
.problem { font-weight: bold; color: #b3261e }
"""
# Moves the cursor over the picture of the piece that is being heard, as long as the player plays.
SCRIPT = """<script>
function followSound(player) {
  for (const piece of player.parentElement.querySelectorAll(".piece")) {
    const place = (player.currentTime - piece.dataset.start) / piece.dataset.seconds;
    const cursor = piece.querySelector(".cursor"), [left, right] = piece.dataset.span.split(" ");
    cursor.style.display = place >= 0 && place <= 1 ? "block" : "none";
    cursor.style.left = `${100 * (+left + place * (right - left))}%`;
  }
  if (!player.paused) requestAnimationFrame(() => followSound(player));
}
</script>"""


class Part(NamedTuple):
    """One piece of a text, spoken."""

    text: str
    start: float  # seconds, in the sound of the whole text
    seconds: float
    result: Synthesis


def find_checkpoints(folders: list[str]) -> list[str]:
    """The checkpoints that these folders are or have below them, each once, the newest first.

    Raises:
        DataError: naming a folder without any.
    """
    found: dict[str, float] = {}  # path to time
    for folder in folders:
        inside = sorted(path.parent / WEIGHTS_FILE for path in Path(folder).rglob(CONFIG_FILE))
        times = {str(path.parent): path.stat().st_mtime for path in inside if path.is_file()}
        if not times:
            raise DataError(
                f"--checkpoint {folder}: there is no checkpoint in it, a folder with "
                f"{CONFIG_FILE} and {WEIGHTS_FILE}"
            )
        found |= times
    return sorted(found, key=lambda name: -found[name])


def make_manner(voice: Voice, vocoder: str, seed: float | None, n_candidates: int) -> Manner:
    """How to speak, from what the page's fields hold.

    Raises:
        DataError: when the seed cannot be one, or the vocoder does not fit the voice.
    """
    if seed is None or not 0 <= seed <= MAX_SEED:
        raise DataError(f"The seed must be a whole number from 0 to {MAX_SEED}.")
    device = next(voice.model.parameters()).device
    speaker = None
    if vocoder != GRIFFIN_LIM:
        speaker = load_vocoder(vocoder, voice.audio_config, device)
    return Manner(seed=int(seed), n_candidates=int(n_candidates), vocoder=speaker)


def say(text: str, voice: Voice, manner: Manner) -> tuple[Tensor, list[Part]]:
    """The sound (n_samples,) of a text, and the pieces that it was spoken in.

    Raises:
        DataError: when the text has nothing to speak, or is too long for the page.
    """
    if not text.strip():
        raise DataError("There is no text yet: type a sentence first.")
    if len(text) > MAX_TEXT:
        raise DataError(
            f"The text has {len(text)} characters, and this page takes {MAX_TEXT}; "
            "synthesize.py --long_text speaks longer ones."
        )
    encode(text, voice)
    pieces = split_text(text, voice.tokenizer, MAX_CHARACTERS)
    rate, sounds, parts, n_samples = voice.audio_config.sampling_rate, [], [], 0
    results = speak((piece.text for piece in pieces), voice, manner)
    for piece, result in zip(pieces, results, strict=True):
        seconds = len(result.wav) / rate
        parts.append(Part(piece.text, n_samples / rate, seconds, result))
        pause = torch.zeros(round(PAUSE_SECONDS * PAUSES[piece.end] * rate))
        sounds += [result.wav, pause]
        n_samples += len(result.wav) + len(pause)
    return torch.cat(sounds[:-1]), parts


def data_url(kind: str, content: bytes) -> str:
    """What stands in a page in place of a file's address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def wav_bytes(wav: Tensor, rate: int) -> bytes:
    """A 16-bit wav file of (n_samples,)."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(to_pcm(wav))
    return content.getvalue()


def draw_part(part: Part, voice: Voice) -> tuple[bytes, float, float]:
    """The PNG of a piece's mel and alignment, and where its time begins and ends.

    The latter are shares of the picture's width.
    """
    from PIL import Image

    from scoring.pictures import figure_to_array, summary_figure  # matplotlib is slow to import

    said = voice.tokenizer.decode(encode(part.text, voice))
    figure = summary_figure(
        None, part.result.mel, part.result.alignment, said,
        hop_seconds=voice.audio_config.hop_seconds,
    )  # fmt: skip
    content = io.BytesIO()
    Image.fromarray(figure_to_array(figure)).save(content, format="PNG")
    place = figure.axes[0].get_position()
    return content.getvalue(), place.x0, place.x1


def describe_part(part: Part, voice: Voice) -> str:
    """How a piece went, as synthesize.py says it: length, ending, score and what looks wrong."""
    tokens = encode(part.text, voice)
    score = part.result.scores["free_running_score"]
    ending = "did not stop" if part.result.reached_limit else "stopped by itself"
    verdict = f"{part.seconds:.2f} s, {ending}, free-running score {score:.2f} "
    verdict += f"({describe_score(score)})"
    faults = find_faults(part.result, tokens, voice)
    unknown = voice.tokenizer.unknown_characters(part.text)
    if unknown:
        faults.insert(0, f"left out {unknown!r}, which the checkpoint has no symbols for")
    return f"{voice.tokenizer.decode(tokens)} \N{EM DASH} {'; '.join([verdict, *faults])}"


def show(wav: Tensor, parts: list[Part], voice: Voice) -> str:
    """The page's lower half as HTML: a player, and of each piece a line and its picture."""
    sound = data_url("audio/wav", wav_bytes(wav, voice.audio_config.sampling_rate))
    blocks = [f'<audio controls src="{sound}" onplay="followSound(this)" '
              'onseeked="followSound(this)"></audio>']  # fmt: skip
    for part in parts:
        picture, left, right = draw_part(part, voice)
        blocks.append(
            f"<p>{html.escape(describe_part(part, voice))}</p>"
            f'<div class="piece" data-start="{part.start:.4f}" data-seconds="{part.seconds:.4f}" '
            f'data-span="{left:.5f} {right:.5f}">'
            f'<img alt="mel and alignment" src="{data_url("image/png", picture)}">'
            '<div class="cursor"></div></div>'
        )
    return f'<div class="spoken">{"".join(blocks)}</div>'


def answer(
    text: str, checkpoint: str, vocoder: str, seed: float | None, n_candidates: int, device: str
) -> str:
    """What the page shows for what its fields hold: sound and pictures, or one sentence."""
    try:
        voice = load_checkpoint(checkpoint, device)
        manner = make_manner(voice, vocoder, seed, n_candidates)
        return show(*say(text, voice, manner), voice)
    except DataError as error:
        return f'<p class="problem" role="alert">{html.escape(" ".join(str(error).split()))}</p>'


def make_page(checkpoints: list[str], vocoders: list[str], device: str) -> "gradio.Blocks":
    """The page's fields, its button, and the place for what `answer` gives.

    Raises:
        DataError: when gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    gr = import_extra("gradio", "the page", "requirements/app.txt")
    with gr.Blocks(title="Tacotron 2") as page:
        text = gr.Textbox(label="Text", lines=3, value="Can you hear my new voice?")
        checkpoint = gr.Dropdown(checkpoints, value=checkpoints[0], label="Checkpoint")
        vocoder = gr.Dropdown([GRIFFIN_LIM, *vocoders], value=GRIFFIN_LIM, label="Vocoder")
        with gr.Row():
            seed = gr.Number(42, precision=0, label="Seed (another one sounds a little different)")
            n_candidates = gr.Slider(
                1, MAX_CANDIDATES, 1, step=1, label="Candidates (tries, the best is kept)"
            )
        button = gr.Button("Speak", variant="primary")
        spoken = gr.HTML()
        fields = [text, checkpoint, vocoder, seed, n_candidates]
        button.click(partial(answer, device=device), fields, spoken, api_name=False)
    return page


def make_app(page: "gradio.Blocks") -> "fastapi.FastAPI":
    """The page as an ASGI application that serves this machine's own names alone."""
    import gradio as gr
    from fastapi import FastAPI, Request, Response
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # Another site whose name leads to 127.0.0.1 must not be able to read the page.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])

    @app.middleware("http")
    async def forbid_other_hosts(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return gr.mount_gradio_app(
        app, page, "/", server_name=HOST, css=STYLE, head=SCRIPT, footer_links=[],
        run_history=False, ssr_mode=False,
    )  # fmt: skip


def listen(port: int) -> socket.socket:
    """A socket that only this machine can reach; port 0 takes any that is free.

    Raises:
        DataError: when the port is taken.
    """
    found = socket.socket()
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((HOST, port))
    except OSError as error:
        found.close()
        raise DataError(f"--port {port}: cannot be used ({error.strerror})") from None
    return found


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags; argparse ends the program on a mistake."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    checkpoint_help = "checkpoints, or folders with checkpoints below them"
    add("--checkpoint", type=path_argument, nargs="+", required=True, help=checkpoint_help)
    vocoder_help = "folders of HiFi-GANs (they need requirements/vocoder.txt)"
    add("--vocoder", type=path_argument, nargs="+", default=[], metavar="DIR", help=vocoder_help)
    port = partial(count_argument, least=0, most=65535)
    add("--port", type=port, default=7860, help="0 for any free one (default: %(default)s)")
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    device_help = "such as cpu, cuda or cuda:1 (default: cuda where there is one)"
    add("--device", type=device_argument, default=default_device, help=device_help)
    return parser.parse_args(argv)


def make_server(args: argparse.Namespace) -> tuple["uvicorn.Server", socket.socket]:
    """What serves the page, and the socket that it listens on.

    Raises:
        DataError: when there is no checkpoint, gradio is missing or the port is taken.
    """
    page = make_page(find_checkpoints(args.checkpoint), args.vocoder, args.device)
    import uvicorn  # comes with gradio

    listening = listen(args.port)
    # An open page holds a connection, for which Ctrl-C must not wait.
    options = {"log_level": "warning", "timeout_graceful_shutdown": 1}
    return uvicorn.Server(uvicorn.Config(make_app(page), **options)), listening


def main(argv: list[str] | None = None) -> None:
    """Runs with these flags (default: the command line's); bad input ends in one sentence."""
    args = parse_args(argv)
    try:
        server, listening = make_server(args)
    except DataError as error:
        sys.exit(f"extras.app: {' '.join(str(error).split())}")
    print(f"http://{HOST}:{listening.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
    with suppress(KeyboardInterrupt):  # which uvicorn raises again when it has ended
        server.run(sockets=[listening])


if __name__ == "__main__":
    main()
