"""The sentences that make_demo_corpus.py speaks: of a seeded grammar, or the lines of a file.

    next(make_sentences(min_chars=10, max_chars=32, seed=42))   # "A monkey washed a sticky door."
    make_sentences(min_chars=12, max_chars=187, seed=42)        # as long as LJSpeech's
    read_sentences("book.txt", n_sentences=None)                # its lines, checked

Nothing here knows of sound. The grammar is
WORD_LISTS, several hundred words, and RULES, the templates that they fill; the seed alone decides
what it says. Every letter comes often, and so does every mark but brackets. Sentences of more than
LONGEST_SENTENCE characters are several parts joined, with quotes, years and numbers in words.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

from command_line.files import DataError

LENGTH_SLACK = 2  # characters that a sentence may miss the drawn length by
LONGEST_SENTENCE = 40  # characters of what the rule "sentence" alone is asked for
JOINS = (", and ", ", and ", ", but ", ", so ", ", while ", ", because ", "; ", "; ", ". ", ". ")
GIVE_UP_AFTER = 5_000  # draws in a row without a new sentence: the grammar is exhausted
# A word as it is spoken, with its apostrophes and hyphens: "we'll", "brand-new".
WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")

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
    "few": "two three four five six seven eight nine",
    "tens": "twenty thirty forty fifty sixty seventy eighty ninety",
    "ones": "-one -two -three -four -five -six -seven -eight -nine",
    "century": "sixteen seventeen eighteen nineteen",
    "surname": "Adams Baxter Cole Dixon Fox Gray Hughes Jennings Knox Quigley Vaughn Young",
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
    "part": """{fact}|{fact}|{fact}|{fact}|{place fact}|{place fact}|{place fact}|{clause}|{clause}|
        {clause} when {clause}|{when}, {clause}|{at} the {place}, {clause}|{name} said, "{clause}"|
        "{clause}," said {name}|in {century} {tens}{ones}, {clause}|the {person}, who was {mood},
        {did} {how}|of {count} {things}, only {number} were {quality}|{title} {surname} {handled}
        {count} {things}|{name}, {name} and {name} {did} {at} the {place}|the {quality} {thing},
        the {quality} {thing} and the {thing} {happened}|{title} {surname} {handled} {object}
        {at} the {place}""",
    "count": """{few} hundred|{few} hundred and {tens}{ones}|{few} thousand|{tens}{ones}|{tens}""",
    "title": "Mister|Doctor|Miss|Captain",
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
REPEATABLE = {"a", "an", "are", "is", "it", "the", "was"}  # no other word comes twice


class CorpusError(DataError):
    """Something the person at the command line can put right; its text says what."""


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
    slots = {name: " ".join(text.split()).split("|") for name, text in RULES.items()}
    slots = {name: [line.strip() for line in lines] for name, lines in slots.items()}
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


def choose_articles(text: str) -> str:
    """Replaces each {a} by "a" or "an"."""
    return re.sub(r"{a}(?= (?!use|one)([aeiou]|honest))", "an", text).replace("{a}", "a")


def draw_sentence(slots: dict[str, list[str]], rng: random.Random) -> str:
    """One random sentence, or "" where it would say a word twice."""
    text = choose_articles(fill("{sentence}", slots, rng))
    words = [word for word in re.findall(r"[a-z'-]+", text.lower()) if word not in REPEATABLE]
    return text[0].upper() + text[1:] if len(set(words)) == len(words) else ""


def draw_long_sentence(slots: dict[str, list[str]], rng: random.Random, n_chars: int) -> str:
    """Parts joined until there are about n_chars characters or more."""
    text = fill("{part}", slots, rng)
    while len(text) < n_chars - LENGTH_SLACK:
        text += rng.choice(JOINS) + fill("{part}", slots, rng)
    text = choose_articles(text) + "."
    # A capital at the start, also after an opening quote, and after each full stop.
    return re.sub(r'^"?[a-z]|(?<=\. )"?[a-z]', lambda m: m[0].upper(), text)


def make_sentences(min_chars: int, max_chars: int, seed: int) -> Iterator[str]:
    """Yields sentences of min_chars to max_chars characters, unique in their letters alone.

    Ends when GIVE_UP_AFTER draws in a row give nothing new.
    """
    rng, slots = random.Random(seed), read_slots()
    seen, misses = set(), 0
    while misses < GIVE_UP_AFTER:
        if misses % 100 == 0:  # a length in turn, or short and long sentences would be rare
            target = rng.randint(min_chars, max_chars)
        if target <= LONGEST_SENTENCE:
            text = draw_sentence(slots, rng)
        else:
            text = draw_long_sentence(slots, rng, target)
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
