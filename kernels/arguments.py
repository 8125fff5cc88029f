"""Command lines of the packages that do without tyro: a slip ends in one sentence that names the nearest option."""

import argparse
import difflib
from typing import NoReturn


def architecture(text: str) -> int:
    """A compute capability times ten, as an argument's type: what neither is one nor could be ends in a sentence, not
    in the compiler."""
    if not (text.isdecimal() and 70 <= int(text) <= 129):
        raise argparse.ArgumentTypeError(f"expected a compute capability times ten, such as 80 or 90, got {text}")
    return int(text)


class Parser(argparse.ArgumentParser):
    """argparse's, except that an error is one sentence on stderr, with no usage before it; exit status 2."""

    def error(self, message: str) -> NoReturn:
        before, unknown, words = message.partition("unrecognized arguments: ")
        if unknown and not before:
            near = difflib.get_close_matches(words.split()[0], self._option_string_actions, n=2, cutoff=0.6)
            advice = f"did you mean {' or '.join(near)}?" if near else f"{self.prog} --help lists the options"
            message = f"unknown option {words}; {advice}"
        self.exit(2, f"{self.prog}: {message}\n")
