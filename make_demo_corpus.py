"""Speaks an LJSpeech-shaped corpus with espeak-ng: training data that needs no download.

    python make_demo_corpus.py --path_to_save demo/corpus
    python make_demo_corpus.py --path_to_save demo/book --sentences book.txt

The first command makes several thousand short English sentences from the seeded grammar below
and speaks them; the second speaks any text file, one sentence a line. Both write, at 22,050 Hz:

    metadata.csv     id|text|text, as in LJSpeech
    wavs/ID.wav      mono, 16 bit
    word_times.json  {id: [{"word", "index" of its first character, "start" in seconds}, ...]}
    corpus.json      the arguments and totals

word_times.json is the true alignment, measured by the synthesizer itself, that a trained model's
attention can be judged by. espeak-ng and its voices come with `pip install espeakng-loader`.
The same arguments give the same bytes, because no sentence is spoken by a process that has
spoken anything but its own fixed block of sentences before it (see BLOCK_SIZE).
"""

import argparse
import ctypes
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from arguments import path_argument

SAMPLING_RATE = 22050  # Hz, what espeak-ng's own synthesizer produces
N_SENTENCES, MIN_CHARS, MAX_CHARS, SEED = 3300, 10, 32, 42
WORDS_PER_MINUTE, SLOWEST, FASTEST = 160, 80, 450  # the last two are espeak-ng's limits
MAX_LEAD_SECONDS = 0.05
TAIL_SECONDS = 0.1
SILENCE_LEVEL = 32  # of 32768: -60 dB of full scale; espeak-ng's pauses are exact zeros
LENGTH_SLACK = 2  # characters
GIVE_UP_AFTER = 5_000  # draws in a row without a new sentence: the grammar is exhausted

# espeak-ng carries the phase of its pitch flutter from one sentence to the next, even across
# espeak_Terminate, so what a process has spoken before changes the samples. Every block of this
# many sentences therefore gets a fresh process; the corpus is the same whatever runs beside it.
BLOCK_SIZE = 250
N_PROCESSES = 2

# espeak-ng's dictionary speaks pairs such as "of the" as one word, with one event for both.
# A zero-width space after each space keeps the pairs apart and is not heard.
WORD_SEPARATOR = "\u200b"
WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")

# From speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_PHONEME_EVENTS, INITIALIZE_DONT_EXIT = 0x0001, 0x8000
POS_CHARACTER, CHARS_UTF8, ENDPAUSE = 1, 1, 0x1000
EVENT_LIST_TERMINATED, EVENT_WORD, EVENT_PHONEME = 0, 1, 7
PARAMETER_RATE = 1

# The words. "fix/fixed" is a verb and its past, "fox/foxes" a noun and its plural,
# and an underscore stands for a space.
WORD_LISTS = {
    "name": """Anna Ben Clara Daisy Felix Grace Hugo Iris Jack Jenny Lucy Max Nora Oscar Paula Quinn
        Rosa Sam Ursula Victor Wendy Xena Zack Zoe""",
    "person/people": """baker boy captain child/children cook doctor driver farmer guard judge king
        knight nurse painter pilot queen sailor student teacher thief/thieves twin uncle wizard
        writer bear bird cat cow dog duck elephant fox frog goat goose/geese horse jaguar lion
        lizard lynx monkey mouse/mice owl ox/oxen panda pig pony puppy quail rabbit sheep/sheep
        tiger wolf/wolves yak zebra""",
    "thing/things": """bag ball banjo basket bell bike boat book boot bowl box brick bridge button
        candle card cart chain chair clock coat coin cup desk door engine fan flag gate gift guitar
        hat jacket jar jewel jug key kite knife/knives lamp letter map mirror motor mug oven paper
        pen piano picture prize puzzle quilt quiz/quizzes ring rope rug sail shoe sign sock spoon
        statue stick table taxi tent tool toy train trumpet umbrella vase violin wagon watch wheel
        window xylophone yacht""",
    "food": """beef bread butter cake cheese chicken coffee corn cream fish fudge honey jam jelly
        juice lemon lettuce milk onion pepper pie pizza popcorn rice salt soup squash sugar tea
        toast water yogurt zucchini""",
    "place": """bakery bank barn beach bridge cabin cafe castle cave church city desk farm forest
        garden gate hill hotel house island jungle kitchen lake library market maze meadow mill
        office palace park pool road school shed shop square station tower tree valley wall yard
        zoo""",
    "degree": """big bright cheap clean cold complex cozy dark deep dirty dusty exotic fancy
        fresh funny fuzzy heavy icy jagged light long loud lovely muddy narrow new noisy old pretty
        quaint quiet round shiny short smooth soft sticky strange strong thin tiny ugly waxy wet
        wide""",
    "kind": """black blue broken empty fine frozen giant golden green hollow huge jazzy little lost
        nice orange perfect pink purple red special square unusual violet white wooden yellow
        zany""",
    "joined": """brand-new extra-large half-open hand-made ice-cold jet-black long-lost
        old-fashioned one-eyed second-hand two-tone world-class""",
    "mood": """angry bored brave busy calm careful clever eager excited famous friendly
        gentle happy honest hungry jealous jolly kind lazy lucky proud puzzled quick sad shy silly
        sleepy slow sorry worried zealous good-natured""",
    "do/did": """agree arrive begin/began change climb come_back/came_back dance dream
        fall_asleep/fell_asleep giggle go_home/went_home hide/hid hurry jog/jogged joke jump laugh
        leave/left listen move paint pause play quit/quit run/ran sail shout sing/sang
        sit_down/sat_down sleep/slept smile sneeze snore speak/spoke stay swim/swam talk turn wait
        wake_up/woke_up walk wave win/won work yell""",
    "handle/handled": """borrow break/broke bring/brought buy/bought carry check choose/chose clean
        cover draw/drew examine find/found fix forget/forgot hide/hid hold/held keep/kept kick lift
        like lose/lost love make/made move need order paint pull push question repair return save
        sell/sold show squeeze switch take/took try wash watch wrap/wrapped""",
    "cook/ate": """bring/brought buy/bought cook like make/made mix sell/sold share smell taste try
        want""",
    "happen/happened": """break/broke fall/fell glow jam/jammed leak move rattle shake/shook
        sink/sank slip/slipped spin/spun squeak stop/stopped vanish wobble""",
    "how": """again alone at_once badly bravely calmly for_fun gently gladly happily in_a_hurry
        kindly lazily loudly nearby nervously often patiently quickly quietly quite_well slowly
        softly suddenly too_fast too_soon twice very_well with_ease""",
    "when": """after_lunch all_day at_dawn at_dusk at_night at_noon every_day in_autumn in_July
        in_June in_spring in_winter just_now last_week next_week on_Friday on_Monday today tonight
        yesterday""",
    "at": "across at behind below beside beyond by inside near outside past",
    "number": "two three four five six seven nine ten twelve twenty-one a_dozen",
    "many": "all both many several some the these those",
    "mass": "any enough extra fresh less more some that the this warm your",
    "own": "her his my our the the the their your",
    "plain": "he she I they we you",
    "call": "come hello hurry look quick relax sorry stop thanks welcome",
    "yes": "ah indeed no oh well yes now so",
}

# A sentence is a template whose {slots} are filled by one of a rule's | alternatives or by a word
# of a list. {a} becomes "a" or "an".
RULES = {
    "sentence": """{statement}.|{statement}.|{statement}.|{statement}.|{question}?|{question}?|
        {cry}!""",
    "statement": """{fact}|{fact}|{fact}|{fact}|{fact}|{fact}|{fact}|{fact}|{fact}|
        {place fact}|{place fact}|{place fact}|{place fact}|{place fact}|{yes}, {clause}|
        {name}, {order}|please {order}|{order}|{order}, {name}|{order}, not {own} {thing}|
        {clause}, but {clause}|{clause}, and {clause}|{clause}, so {clause}|{short}; {short}|
        {short}; {short}|{short}; {short}|{short}; {clause}|{clause}; {short}|
        {clause} when {clause}|if you {do}, {plain} will {do}|if they {do}, we {do}|
        when {plain} {did}, {one} {did}|{when}, {clause}|{at} the {place}, {clause}|
        one rule: {order}|remember: {clause}|listen: {clause}|the news: {clause}|
        look: {a} {quality} {thing}|the plan: {do} and {do}|{plain} {handled} it: {a} {thing}|
        {plain} {handled} both: {a} {thing} and {a} {thing}|we want {food}, {food} and {food}|
        it's true: {clause}|two things: {a} {thing} and {a} {thing}|
        {a} {thing}, {a} {thing}, {a} {thing}|{food}, {food} and {food}|
        {name}, {name} and {name} {did}|{long}""",
    "long": """{place fact}, and {place fact}|{fact}, but {long}|{fact}, so {long}|
        {fact}; {long}|{when}, {long}|{yes}, {long}""",
    "fact": """{clause}|{subject} {did} {how}|{clause} {when}|{subject} {handled} it {how}|
        {subject} can't {do}|{subject} won't {do}|{subject} didn't {do}|
        {subject} couldn't {do}|{subject} will {do} {when}|{subject} may {do}|
        {subject} must {handle} it|I don't {handle} it|we'll {handle} the {thing}|
        they'll {do} {when}|you'd {handle} {a} {thing}|I'd like {mass} {food}|
        {subject} never {did}|{subject} always {did}|{subject} just {handled} it|
        nobody {did} {how}|{subject} had {a} {quality} {thing}|
        the {person} and the {person} {did}|I've {number} {things}|
        {subject} {handled} {many} {things}|{plain} {handled} {object}|
        {plain} {handled} {number} {things}|the {things} are {quality}|
        {own} {things} {happened}|{number} {things} {happened}|{name} {handled} {own} {things}|
        {plain} {ate} the {food}|{plain} {handled} the {thing}|{name} {handled} {a} {thing}|
        {a} {person} {handled} it|{subject} {handled} {number} {quality} {things}|
        {subject} {handled} {a} {quality} {thing}|{subject} ate {mass} {food}|
        they {ate} the {food}""",
    "place fact": """{subject} {did} {at} the {place}|{subject} {handled} it {at} the {place}|
        the {place} is {quality}|the {quality} {thing} is {at} the {place}|
        there's {a} {thing} {at} the {place}|{many} {people} {did} {at} the {place}|
        the {place} was {quality}, not {quality}|{name} {handled} {a} {thing} {at} the {place}|
        our {place} has {number} {things}|it is {at} the {place}|they {did} {at} the {place}|
        {name} is {at} the {place}|the {things} are {at} the {place}|
        {own} {place} is {quality}""",
    "clause": """{subject} {did}|{subject} {did}|{subject} {did}|{subject} {handled} {object}|
        {subject} {handled} {object}|{subject} {handled} {object}|
        {subject} {ate} {mass} {food}|{one} was {mood}|{one} is {mood}|{one} isn't {mood}|
        {own} {thing} is {quality}|{own} {thing} was {quality}|{own} {things} were {quality}|
        the {thing} {happened}|{own} {quality} {thing} {happened}|{number} {people} {did}|
        it's {quality}|they're {mood}|I'm {mood}|{name}'s {thing} is {quality}|
        the {person}'s {thing} {happened}|{many} {people} are {mood}""",
    "short": """{name} {did}|{one} {did}|{plain} {did}|it {happened}|it's {quality}|I'm {mood}|
        {do} {how}|don't {do}|{plain} can {do}|{name} is {mood}|the {thing} {happened}|
        {handle} it|they're {quality}""",
    "subject": "{one}|{one}|{one}|{plain}|{plain}|{many} {people}|{number} {people}",
    "quality": "{degree}|{degree}|{degree}|{kind}|{kind}|{joined}",
    "one": """{name}|{name}|the {person}|the {person}|{own} {person}|the {mood} {person}|
        {a} {person}""",
    "object": """it|them|that {thing}|this {thing}|{own} {thing}|{own} {thing}|{a} {thing}|
        the {quality} {thing}|{name}'s {thing}|{number} {things}|the {person}'s {thing}""",
    "order": """{handle} {object}|{handle} {object}|{handle} the {thing}|
        {handle} {own} {things}|{do} {how}|don't {do}|don't {handle} it|{cook} {mass} {food}|
        never {handle} {a} {thing}|{do} {at} the {place}|{handle} it {how}|let's {do}|
        let's {handle} {object}|be {mood}""",
    "question": """did {subject} {do}|did {subject} {handle} {object}|can {plain} {do} {how}|
        can {name} {do}|will {subject} {do} {when}|is {one} {mood}|was {one} {mood} {when}|
        isn't {one} {mood}|is {own} {thing} {quality}|are {own} {things} {quality}|
        where is {own} {thing}|where are {own} {things}|who {did} {at} the {place}|
        who {handled} {object}|who is {mood}|why is {one} {mood}|why did {subject} {do}|
        why is {own} {thing} {quality}|what is {at} the {place}|what {happened} {when}|
        is it {at} the {place}|where is the {place}|who {handled} the {thing}|
        who has {number} {things}|do {things} {happen}|are the {people} {mood}|
        how {degree} is {own} {thing}|how did {subject} {do}|when will {subject} {do}|
        shall we {do} {when}|is it {quality} or {quality}|{yes}, did {subject} {do}|
        may I {handle} {own} {thing}|would you like {mass} {food}|which {thing} is {quality}|
        whose {thing} is it|whose {thing} {happened}|does {name} {do} {how}|
        didn't {subject} {do}""",
    "cry": """what {a} {quality} {thing}|what {a} {mood} {person}|how {degree} it is|
        how {mood} {one} is|{call}, {name}|{call}, {order}|{yes}, {clause}|{order}|
        {name}, {order}|{name}, {do} {how}|{plain} {did}|{call}, {own} {person}|
        hooray, {clause}|{clause}|look, {a} {person}|{fact}|{fact}""",
}
REPEATABLE = {"a", "an", "are", "is", "it", "the", "was"}


class CorpusError(Exception):
    """Something the person at the command line can put right; its text says what."""


class EspeakEvent(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # 1-based, in characters
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_ubyte * 8),  # a union; a phoneme's name
    ]


SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(EspeakEvent)
)


class Speaker:
    """espeak-ng with one voice at one speed. The library is global: one per process."""

    def __init__(self, voice: str, words_per_minute: int):
        try:
            import espeakng_loader
        except ImportError:
            raise CorpusError("espeak-ng is not installed: pip install espeakng-loader") from None
        data_path = espeakng_loader.get_data_path()
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        options = INITIALIZE_PHONEME_EVENTS | INITIALIZE_DONT_EXIT
        rate = self.library.espeak_Initialize(
            AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data_path), options
        )
        if rate != SAMPLING_RATE:
            raise CorpusError(
                f"espeak-ng cannot read {data_path} (paths over 150 characters are too long)"
            )
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise CorpusError(
                f"espeak-ng has no voice {voice!r}; its voices are the files in {data_path}/lang"
            )
        self.library.espeak_SetParameter(PARAMETER_RATE, words_per_minute, 0)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # espeak-ng seeds with the time
        self.library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint,
            ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        self.chunks: list[np.ndarray] = []
        self.events: list[tuple[int, int, int, bytes]] = []
        self.callback = SynthCallback(self._collect)  # kept: the library holds only a pointer
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples, n_samples, events) -> int:
        if samples and n_samples > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (n_samples,)).copy())
        for event in events:  # an endless pointer: the list ends with a marked event
            if event.type == EVENT_LIST_TERMINATED:
                break
            phoneme = bytes(event.id) if event.type == EVENT_PHONEME else b""
            self.events.append((event.type, event.text_position - 1, event.sample, phoneme))
        return 0

    def speak(self, text: str) -> tuple[np.ndarray, dict[int, int]]:
        """Speaks one line of text.

        Returns the samples, (n_samples,) int16 at 22,050 Hz, and {index: sample}: where in the
        samples the sound of the word starts whose first character is text[index].

        A word's event marks the start of its first phoneme's slot, and the slot of p, t or k
        opens with up to 49 ms of closed lips or tongue, so the first *phoneme's* event, which
        marks its sound, gives the time. Raises CorpusError where nothing is spoken.
        """
        spoken = re.sub(r"(\s)", r"\1" + WORD_SEPARATOR, text)
        text_index = [i for i, char in enumerate(text) for _ in range(1 + char.isspace())]
        self.chunks, self.events = [], []
        data = spoken.encode() + b"\0"
        flags = CHARS_UTF8 | ENDPAUSE
        if self.library.espeak_Synth(data, len(data), 0, POS_CHARACTER, 0, flags, None, None) != 0:
            raise CorpusError(f"espeak-ng could not speak {text!r}")
        starts, word = {}, None
        for kind, position, sample, phoneme in self.events:
            if kind == EVENT_WORD:
                word = text_index[position] if 0 <= position < len(text_index) else None
            elif kind == EVENT_PHONEME and word is not None and not phoneme.startswith(b"_"):
                starts.setdefault(word, sample)
                word = None
        return trim_silence(np.concatenate([np.zeros(0, np.int16), *self.chunks]), starts, text)


def trim_silence(
    wav: np.ndarray, starts: dict[int, int], text: str
) -> tuple[np.ndarray, dict[int, int]]:
    """Leaves at most MAX_LEAD_SECONDS of silence before the speech, and TAIL_SECONDS after it."""
    loud = np.flatnonzero(np.abs(wav.astype(np.int32)) > SILENCE_LEVEL)
    if not len(loud):
        raise CorpusError(f"espeak-ng spoke nothing for {text!r}")
    first = max(0, int(loud[0]) - round(MAX_LEAD_SECONDS * SAMPLING_RATE))
    tail = np.zeros(round(TAIL_SECONDS * SAMPLING_RATE), np.int16)
    trimmed = np.concatenate([wav[first : loud[-1] + 1], tail])
    return trimmed, {index: max(0, n - first) for index, n in starts.items()}


def word_times(text: str, starts: dict[int, int]) -> tuple[list[dict], int]:
    """Joins the words of a text with their starts in samples.

    Returns the words that have a time, and the number of those that have none.
    """
    times = []
    words = list(WORD.finditer(text))
    for word in words:
        start = starts.get(word.start())
        if start is not None:
            seconds = round(start / SAMPLING_RATE, 5)
            times.append({"word": word[0], "index": word.start(), "start": seconds})
    return times, len(words) - len(times)


def other_form(word: str, ending: str) -> str:
    """The plural (ending "s") or past (ending "d") of a word; after a slash where irregular."""
    base, _, irregular = word.partition("/")
    if ending == "d":
        ending = "d" if base.endswith("e") else "ed"
    elif re.search("(s|x|z|ch|sh|[^aeiou]y)$", base):
        ending = "es"
    return irregular or re.sub("([^aeiou])y$", r"\1i", base) + ending


def read_slots() -> dict[str, list[str]]:
    """What each slot of a template can be filled with."""
    slots = {name: [line.strip() for line in text.split("|")] for name, text in RULES.items()}
    for name, text in WORD_LISTS.items():
        words = [word.replace("_", " ") for word in text.split()]
        name, _, other_name = name.partition("/")
        if other_name:
            ending = "s" if name in ("person", "thing") else "d"
            slots[other_name] = [other_form(word, ending) for word in words]
        slots[name] = [word.split("/")[0] for word in words]
    return slots


def fill(template: str, slots: dict[str, list[str]], rng: random.Random) -> str:
    """Replaces {slots} until none is left."""
    return re.sub(r"{([a-z ]{2,})}", lambda m: fill(rng.choice(slots[m[1]]), slots, rng), template)


def draw_sentence(slots: dict[str, list[str]], rng: random.Random) -> str:
    """One random sentence, or "" where it would say a word twice."""
    text = fill("{sentence}", slots, rng)
    text = re.sub(r"{a}(?= (?!use|one)([aeiou]|honest))", "an", text).replace("{a}", "a")
    words = [word for word in re.findall(r"[a-z'-]+", text.lower()) if word not in REPEATABLE]
    return text[0].upper() + text[1:] if len(set(words)) == len(words) else ""


def make_sentences(min_chars: int, max_chars: int, seed: int) -> Iterator[str]:
    """Yields sentences of min_chars to max_chars characters, unique in their letters alone.

    Ends when GIVE_UP_AFTER draws in a row give nothing new.
    """
    rng, slots = random.Random(seed), read_slots()
    seen, misses = set(), 0
    while misses < GIVE_UP_AFTER:
        if misses % 100 == 0:  # a length in turn, or short and long sentences would be rare
            target = rng.randint(min_chars, max_chars)
        text = draw_sentence(slots, rng)
        key = re.sub(r"[^a-z]", "", text.lower())
        fits = min_chars <= len(text) <= max_chars and abs(len(text) - target) <= LENGTH_SLACK
        if fits and key not in seen:
            seen.add(key)
            misses = 0
            yield text
        else:
            misses += 1


def read_sentences(path: str, n_sentences: int | None) -> list[str]:
    """The non-blank lines of a UTF-8 text file, or the first n_sentences of them.

    Raises CorpusError where the file cannot be read or a line cannot stand in metadata.csv.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {error}") from None
    sentences = []
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or len(sentences) == n_sentences:
            continue
        if "|" in line or any(ord(char) < 32 and char != "\t" for char in line):
            raise CorpusError(f"{path} line {number} has a | or a control character; remove it")
        if not WORD.search(line):
            raise CorpusError(f"{path} line {number} has no word to speak; remove it")
        sentences.append(line)
    if len(sentences) < (n_sentences or 1):
        raise CorpusError(f"{path} has only {len(sentences)} sentences")
    return sentences


def speak_block(
    block: list[tuple[str, str]], wavs: Path, voice: str, words_per_minute: int
) -> list:
    """Speaks [(id, text), ...] into wavs; returns [(id, seconds, times, n_untimed), ...]."""
    speaker = Speaker(voice, words_per_minute)
    clips = []
    for clip_id, text in block:
        wav, starts = speaker.speak(text)
        soundfile.write(wavs / f"{clip_id}.wav", wav, SAMPLING_RATE, subtype="PCM_16")
        clips.append((clip_id, len(wav) / SAMPLING_RATE, *word_times(text, starts)))
    return clips


def speak_block_apart(block: list[tuple[str, str]], *speech) -> list:
    """speak_block in a process of its own."""
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit what was spoken
    try:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(speak_block, block, *speech).result()
    except BrokenProcessPool:
        raise CorpusError("a speaking process died; was the machine out of memory?") from None


def speak_all(clips: list[tuple[str, str]], *speech) -> Iterator[list]:
    """Yields what speak_block returns, block after block, N_PROCESSES at a time."""
    blocks = [clips[i : i + BLOCK_SIZE] for i in range(0, len(clips), BLOCK_SIZE)]
    mask = {}
    if hasattr(signal, "pthread_sigmask"):  # processes inherit it: Ctrl-C is for this one alone
        resource_tracker.ensure_running()  # the first process would start it, and it unmasks
        mask["initializer"] = signal.pthread_sigmask
        mask["initargs"] = (signal.SIG_BLOCK, [signal.SIGINT])
    with ThreadPoolExecutor(N_PROCESSES, **mask) as threads:
        yield from threads.map(lambda block: speak_block_apart(block, *speech), blocks)


def write_corpus(
    folder: Path, sentences: list[str], spares: Iterator[str], voice: str, words_per_minute: int
) -> dict:
    """Writes wavs, metadata.csv and word_times.json into an empty folder; returns the totals.

    A sentence with a word that has no time is replaced by the next of the spares while there are
    any, and otherwise kept without that word's time.
    """
    (folder / "wavs").mkdir()
    texts = {f"DEMO-{n:05d}": text for n, text in enumerate(sentences, start=1)}
    done, todo, n_replaced = {}, list(texts), 0
    with tqdm(total=len(texts), unit=" clips", disable=not sys.stderr.isatty()) as bar:
        while todo:
            clips = [(clip_id, texts[clip_id]) for clip_id in todo]
            for block in speak_all(clips, folder / "wavs", voice, words_per_minute):
                done |= {clip_id: rest for clip_id, *rest in block}
                bar.update(len(block))
            spare_of = dict(zip((i for i in todo if done[i][2]), spares, strict=False))
            texts |= spare_of
            todo = list(spare_of)
            n_replaced += len(todo)
    metadata = "".join(f"{clip_id}|{text}|{text}\n" for clip_id, text in texts.items())
    (folder / "metadata.csv").write_text(metadata, encoding="utf-8", newline="\n")
    times = ",\n".join(f"{json.dumps(i)}: {json.dumps(done[i][1])}" for i in texts)
    (folder / "word_times.json").write_text(f"{{\n{times}\n}}\n", encoding="utf-8", newline="\n")
    return {
        "n_clips": len(texts),
        "seconds": round(sum(seconds for seconds, _, _ in done.values()), 2),
        "n_words": sum(len(words) for _, words, _ in done.values()),
        "n_words_without_time": sum(n for _, _, n in done.values()),
        "n_sentences_replaced": n_replaced,
    }


def choose_sentences(args: argparse.Namespace) -> tuple[list[str], Iterator[str]]:
    """The sentences to speak, and spares for those that espeak-ng does not time word by word."""
    if args.n_sentences is not None and args.n_sentences < 1:
        raise CorpusError(f"--n_sentences is {args.n_sentences}; it must be at least 1")
    if args.sentences is not None:
        return read_sentences(args.sentences, args.n_sentences), iter(())
    n_sentences = args.n_sentences or N_SENTENCES
    if not 1 <= args.min_chars <= args.max_chars:
        raise CorpusError(f"no length is {args.min_chars} to {args.max_chars} characters")
    supply = make_sentences(args.min_chars, args.max_chars, args.seed)
    sentences = list(itertools.islice(supply, n_sentences))
    if len(sentences) < n_sentences:
        raise CorpusError(
            f"the grammar gives only {len(sentences)} different sentences of {args.min_chars} to"
            f" {args.max_chars} characters; lower --n_sentences or widen the range"
        )
    return sentences, itertools.islice(supply, n_sentences)


def is_there(folder: Path, arguments: dict, overwrite: bool) -> bool:
    """Whether folder already holds the complete corpus of these arguments.

    Raises CorpusError where it holds anything else that may not be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        record = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        found, n_clips = dict(record["arguments"]), int(record["n_clips"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise CorpusError(
            f"{folder} exists and was not made by this script; choose another"
        ) from None
    if overwrite:
        return False
    if found != arguments:
        names = [name for name in arguments if found.get(name) != arguments[name]]
        raise CorpusError(
            f"{folder} holds another corpus (other {', '.join(names)}); choose another folder"
            " or add --overwrite"
        )
    if len(list((folder / "wavs").glob("*.wav"))) != n_clips:
        raise CorpusError(f"{folder} has lost some of its {n_clips} wavs; add --overwrite")
    return True


def build_corpus(args: argparse.Namespace) -> str:
    """Makes the corpus, whole or not at all; returns a sentence about it.

    Raises CorpusError for what the person at the command line can put right.
    """
    if not SLOWEST <= args.words_per_minute <= FASTEST:
        raise CorpusError(f"--words_per_minute must be {SLOWEST} to {FASTEST}")
    sentences, spares = choose_sentences(args)
    arguments = {
        "n_sentences": len(sentences),
        "sentences_sha256": hashlib.sha256("\n".join(sentences).encode()).hexdigest(),
        "voice": args.voice,
        "words_per_minute": args.words_per_minute,
    }
    folder = Path(args.path_to_save).absolute()
    if is_there(folder, arguments, args.overwrite):
        return f"{folder} is already there, made with the same arguments."
    Speaker(args.voice, args.words_per_minute)  # so that a bad voice fails here, in words
    scratch = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    replaced = folder.with_name(f"{scratch.name}-replaced")
    scratch.mkdir(parents=True)
    try:
        totals = write_corpus(scratch, sentences, spares, args.voice, args.words_per_minute)
        record = json.dumps({"arguments": arguments, **totals}, indent=2)
        (scratch / "corpus.json").write_text(record + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(replaced)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return (
        f"{folder}: {totals['n_clips']} clips, {totals['seconds'] / 60:.1f} minutes,"
        f" {totals['n_words']} words with their times"
        f" ({totals['n_words_without_time']} without, {totals['n_sentences_replaced']} sentences"
        " replaced)."
    )


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Speak an LJSpeech-shaped corpus with espeak-ng.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--path_to_save", type=path_argument, required=True, help="folder to make")
    add(
        "--sentences",
        type=path_argument,
        help="UTF-8 text to speak, one sentence a line (default: the grammar's)",
    )
    add("--n_sentences", type=int, help=f"default: {N_SENTENCES}, or all lines of --sentences")
    add("--min_chars", type=int, help=f"grammar only (default: {MIN_CHARS})")
    add("--max_chars", type=int, help=f"grammar only (default: {MAX_CHARS})")
    add("--seed", type=int, help=f"grammar only (default: {SEED})")
    add("--voice", default="en-us", help="an espeak-ng voice (default: %(default)s)")
    add("--words_per_minute", type=int, default=WORDS_PER_MINUTE, help="default: %(default)s")
    add("--overwrite", action="store_true", help="replace another corpus at path_to_save")
    args = parser.parse_args(argv)
    for name, default in (("min_chars", MIN_CHARS), ("max_chars", MAX_CHARS), ("seed", SEED)):
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif args.sentences is not None:
            parser.error(f"--{name} is for the grammar and has no meaning with --sentences")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        print(build_corpus(args))
    except (CorpusError, OSError) as error:
        print(f"make_demo_corpus.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_demo_corpus.py: interrupted; nothing was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
