"""Parse every script's flags, and answer a mistake with one line that suggests the right flag.

    $ python train_taco.py --lr 1e-3
    train_taco.py: there is no flag --lr: did you mean --learning_rate? --help lists them all

This file does not import torch, so that prep_splits.py starts at once.
"""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from command_line.files import one_line

MAX_SUGGESTIONS = 3


def suggest_flags(name: str, flags: Sequence[str]) -> list[str]:
    """List the flags that an unknown one may mean, the likeliest first, with their dashes.

    First come flags whose initials it spells, as lr for learning_rate, then flags with a similar
    spelling, then flags that contain all of its words, as training_epochs for epochs.
    """
    plain = {flag.lstrip("-").replace("-", "_"): flag for flag in flags}
    name = name.lstrip("-").replace("-", "_").lower()
    found = [flag for flag in plain if "".join(word[0] for word in flag.split("_") if word) == name]
    found += get_close_matches(name, plain, n=MAX_SUGGESTIONS, cutoff=0.7)
    by_length = sorted(plain, key=len)
    found += [flag for flag in by_length if set(name.split("_")) <= set(flag.split("_"))]
    return [plain[flag] for flag in dict.fromkeys(found)][:MAX_SUGGESTIONS]


class FlagParser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations and answers a mistake with one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def add(self, flag: str, help: str, **options: Any) -> None:
        """Add a flag; its help ends with the default, if there is one."""
        default = "" if options.get("default") is None else " (default: %(default)s)"
        self.add_argument(flag, help=help + default, **options)

    def error(self, message: str) -> NoReturn:
        """End the program with this message and exit code 2."""
        self.exit(2, f"{self.prog}: {one_line(message, None)}\n")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse unknown flags first, so that a misspelled required flag is not called missing."""
        args = list(sys.argv[1:] if args is None else args)
        for word in args:
            flag = word.split("=")[0]
            is_flag = flag.startswith("--") and " " not in word  # as argparse has it
            if is_flag and flag not in self._option_string_actions:
                is_off = flag.startswith(("--no-", "--no_"))
                known = [x for x in self._option_string_actions if x.startswith("--")]
                found = suggest_flags(flag, [x for x in known if x.startswith("--no-") == is_off])
                question = f": did you mean {' or '.join(found)}?" if found else ";"
                self.error(f"there is no flag {flag}{question} --help lists them all")
        return super().parse_known_args(args, namespace)
