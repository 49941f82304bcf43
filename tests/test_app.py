"""extras/app.py: what it says and finds, and the page in a browser that nobody sees.

The latter needs gradio and playwright, which requirements/dev.txt leaves out, and Chromium.
"""

import io
import os
import shutil
import socket
import sys
import threading
import time
from functools import partial
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from command_line.files import DataError
from dataset import AudioConfig
from extras import app
from speech.speaking import Manner, speak_batch
from speech.voice import load_checkpoint
from test_vocoder import V1, write_folder

RATE = AudioConfig().sampling_rate
TEXT = "Go home, {{x}} ${1} <b>now</b>.\n\nIt snowed."  # with what a template may take for its own
# The untrained voice does not stop by itself.
SHORT = partial(Manner, max_decoder_steps=60, n_retries=0)


@pytest.fixture(scope="module", autouse=True)
def short_speech():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "Manner", SHORT)
        yield


@pytest.fixture(scope="module")
def loaded(voice):
    return load_checkpoint(voice)


def test_checkpoints_are_found_below_a_folder_the_newest_first(tmp_path):
    for name, time_written in (("run/a", 1), ("run/b", 2), ("run/half", None)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
        if time_written:
            (folder / "model.safetensors").touch()
            os.utime(folder / "model.safetensors", (time_written, time_written))
    old, new = str(tmp_path / "run/a"), str(tmp_path / "run/b")
    assert app.find_checkpoints([old, str(tmp_path)]) == [new, old]
    with pytest.raises(DataError, match="half: there is no checkpoint in it"):
        app.find_checkpoints([str(tmp_path / "run/half")])


def test_the_pieces_of_a_text_are_joined_with_pauses(loaded):
    wav, parts = app.say("It rained.\n\nIt snowed.", loaded, SHORT(seed=1))
    first, second = speak_batch(["It rained.", "It snowed."], loaded, SHORT(seed=1))
    n_first, n_pause = len(first.wav), round(0.6 * RATE)  # twice 0.3 s between paragraphs
    assert torch.equal(wav[:n_first], first.wav) and not wav[n_first : n_first + n_pause].any()
    assert torch.equal(wav[n_first + n_pause :], second.wav)
    assert [part.text for part in parts] == ["It rained.", "It snowed."]
    assert parts[1].start == pytest.approx((n_first + n_pause) / RATE)
    assert parts[1].seconds == pytest.approx(len(second.wav) / RATE)


def test_the_sound_is_a_wav_of_its_rate():
    wav = torch.linspace(-1, 1, 1000)
    samples, rate = soundfile.read(io.BytesIO(app.wav_bytes(wav, 16000)))
    assert rate == 16000 and np.allclose(samples, wav, atol=1e-4)


def test_the_cursor_runs_from_edge_to_edge_of_the_pictures_panels(loaded):
    _, (part,) = app.say("Go home.", loaded, SHORT(seed=1))
    png, left, right = app.draw_part(part, loaded)
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    dark = (picture < 60).mean(axis=0)  # share of each column; a panel's edges are dark lines
    for edge in (left, right):
        column = round(edge * picture.shape[1])
        assert dark[column - 2 : column + 3].max() > 0.6
    outside = (
        *range(round(left * len(dark)) - 8),
        *range(round(right * len(dark)) + 30, len(dark)),
    )
    assert dark[list(outside)].max() < 0.6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": " \n"}, "There is no text yet: type a sentence first."),
        ({"text": "!?"}, "text has no letter to speak: &#x27;!?&#x27;"),
        ({"text": "a" * 2001}, "The text has 2001 characters, and this page takes 2000; "
                               "synthesize.py --long_text speaks longer ones."),
        ({"seed": None}, "The seed must be a whole number from 0 to 9007199254740991."),
        ({"seed": -1}, "The seed must be a whole number from 0 to 9007199254740991."),
        ({"vocoder": "nowhere"}, "--vocoder nowhere: no such folder"),
        ({"checkpoint": "<b>"}, "&lt;b&gt;: no such checkpoint folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_spoken_is_answered_with_a_sentence(voice, given, said):
    fields = {"text": "Go home.", "checkpoint": str(voice), "vocoder": app.GRIFFIN_LIM, "seed": 1,
              "n_candidates": 1, "device": "cpu"}  # fmt: skip
    assert app.answer(**fields | given) == f'<p class="problem" role="alert">{said}</p>'


def test_seed_candidates_and_vocoder_are_those_of_the_page(loaded, tmp_path):
    assert app.make_manner(loaded, app.GRIFFIN_LIM, 7.0, 3) == SHORT(seed=7, n_candidates=3)
    pytest.importorskip("transformers")
    folder = write_folder(tmp_path / "hifigan", V1)
    manner = app.make_manner(loaded, str(folder), 7, 1)
    assert len(manner.vocoder(torch.zeros(5, 80))) == 5 * 256


def test_what_looks_wrong_and_what_was_left_out_is_said(loaded):
    _, (part,) = app.say("Go home 漢.", loaded, SHORT(seed=1))
    said = app.describe_part(part, loaded)
    assert said.startswith("go home . \N{EM DASH} 0.70 s, did not stop, free-running score 0.00 (")
    assert "; left out '漢'," in said and "; it did not stop, and was cut at" in said


def test_no_text_is_taken_for_html(loaded, monkeypatch):
    monkeypatch.setattr(app, "describe_part", lambda *_: "<script>")
    shown = app.show(*app.say("Go home.", loaded, SHORT(seed=1)), loaded)
    assert "<p>&lt;script&gt;</p>" in shown and "<script" not in shown


def test_without_gradio_a_sentence_says_what_to_install(voice, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r"extras\.app: .* gradio: .*requirements/app"):
        app.main(["--checkpoint", str(voice)])


def test_a_port_that_is_taken_is_named():
    with app.listen(0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert taken.getsockname()[0] == "127.0.0.1"
        with pytest.raises(DataError, match=f"--port {port}: cannot be used"):
            app.listen(port)


# ---- In a browser


@pytest.fixture(scope="module")
def reached():
    """The hosts other than this machine that the program asks for, in a list."""
    found, connect, look_up = [], socket.socket.connect, socket.getaddrinfo

    def note(host):
        if host not in ("127.0.0.1", "::1", "localhost", None):
            found.append(host)

    def noted_connect(self, address):
        note(address[0] if isinstance(address, tuple) else None)
        return connect(self, address)

    def noted_look_up(host, *args, **kwargs):
        note(host)
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noted_connect)
        patch.setattr(socket, "getaddrinfo", noted_look_up)
        yield found


@pytest.fixture(scope="module")
def url(voice, reached):
    """The page's address, while it is served."""
    pytest.importorskip("gradio", reason="gradio is not installed (requirements/app.txt)")
    flags = ["--checkpoint", str(voice), "--port", "0", "--device", "cpu"]
    server, listening = app.make_server(app.parse_args(flags))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def press(page, text: str) -> None:
    """Types a text, presses the button and waits for what comes."""
    page.get_by_label("Text").fill(text)
    page.get_by_role("button", name="Speak").click()
    page.locator("audio, .problem").first.wait_for()


def test_a_text_is_heard_and_seen_on_the_page(browser, url, loaded, reached):
    page, asked, said = browser.new_page(), [], []
    page.on("request", lambda request: asked.append(urlsplit(request.url)))
    page.on("console", lambda message: said.append(message.text))
    page.goto(url)
    press(page, TEXT)
    page.wait_for_function("document.querySelector('audio').readyState > 0")
    wav, parts = app.say(TEXT, loaded, SHORT(seed=42))
    assert len(wav) == 2 * 60 * 256 + round(0.6 * RATE)
    seconds = page.evaluate("document.querySelector('audio').duration")
    assert seconds == pytest.approx(len(wav) / RATE, abs=0.01)
    shown = page.locator(".spoken p").all_inner_texts()
    assert shown == [app.describe_part(part, loaded) for part in parts]
    for picture in page.locator(".spoken img").all():
        assert picture.evaluate("image => [image.complete, image.naturalWidth]") == [True, 800]

    time = parts[1].start + parts[1].seconds / 4
    page.evaluate(f"document.querySelector('audio').currentTime = {time}")
    first, second = page.locator(".cursor").all()
    second.wait_for()
    assert not first.is_visible()
    _, left, right = app.draw_part(parts[1], loaded)
    box, cursor = picture.bounding_box(), second.bounding_box()
    place = (cursor["x"] - box["x"]) / box["width"]
    assert place == pytest.approx(left + (right - left) / 4, abs=0.01)

    press(page, "")
    page.locator(".problem").wait_for()
    assert page.locator(".problem").inner_text() == "There is no text yet: type a sentence first."
    assert page.locator("audio").count() == 0
    hosts = {parts.hostname for parts in asked if parts.scheme in ("http", "https", "ws")}
    assert hosts == {"127.0.0.1"} and not said and not reached


def test_the_page_is_for_this_machines_names_alone(url):
    import httpx  # comes with gradio

    assert "default-src 'self'" in httpx.get(url).headers["Content-Security-Policy"]
    assert httpx.get(url, headers={"Host": "other.example"}).status_code == 400
