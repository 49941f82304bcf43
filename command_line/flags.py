"""The parser of every script's flags: a mistake ends in one line, with the flag that was meant.

    $ python train_taco.py --lr 1e-3
    train_taco.py: there is no flag --lr: did you mean --learning_rate? --help lists them all

Without torch, so that prep_splits.py starts at once.
"""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

MAX_SUGGESTIONS = 3


def suggest_flags(name: str, flags: Sequence[str]) -> list[str]:
    """The flags that an unknown one may mean, the likeliest first; all with their dashes.

    First those whose words begin with its letters, as lr for learning_rate, then those spelled much
    like it, then those that hold all of its words, as training_epochs for epochs.
    """
    plain = {flag.lstrip("-").replace("-", "_"): flag for flag in flags}
    name = name.lstrip("-").replace("-", "_").lower()
    found = [flag for flag in plain if "".join(word[0] for word in flag.split("_") if word) == name]
    found += get_close_matches(name, plain, n=MAX_SUGGESTIONS, cutoff=0.7)
    by_length = sorted(plain, key=len)
    found += [flag for flag in by_length if set(name.split("_")) <= set(flag.split("_"))]
    return [plain[flag] for flag in dict.fromkeys(found)][:MAX_SUGGESTIONS]


class FlagParser(argparse.ArgumentParser):
    """argparse's, without abbreviations, and with one line for a mistake instead of the usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Ends the program with this message and exit code 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuses unknown flags first: a misspelled flag that is required is not a missing one."""
        args = list(sys.argv[1:] if args is None else args)
        for word in args:
            flag = word.split("=")[0]
            is_flag = flag.startswith("--") and " " not in word  # as argparse has it
            if is_flag and flag not in self._option_string_actions:
                self.refuse_unknown(flag)
        return super().parse_known_args(args, namespace)

    def refuse_unknown(self, flag: str) -> NoReturn:
        """Ends the program with a line that names the flags which this one may mean."""
        is_off = flag.startswith("--no-") or flag.startswith("--no_")
        known = [
            name
            for name in self._option_string_actions
            if name.startswith("--") and name.startswith("--no-") == is_off
        ]
        found = suggest_flags(flag, known)
        question = f": did you mean {' or '.join(found)}?" if found else ";"
        self.error(f"there is no flag {flag}{question} --help lists them all")
