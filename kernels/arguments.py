"""Command lines of the packages that do without tyro: a slip ends in one sentence that names the nearest option."""

import argparse
import difflib
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's, except that an error is one sentence on stderr, with no usage before it; exit status 2."""

    def error(self, message: str) -> NoReturn:
        before, unknown, words = message.partition("unrecognized arguments: ")
        if unknown and not before:
            near = difflib.get_close_matches(words.split()[0], self._option_string_actions, n=2, cutoff=0.6)
            advice = f"did you mean {' or '.join(near)}?" if near else f"{self.prog} --help lists the options"
            message = f"unknown option {words}; {advice}"
        self.exit(2, f"{self.prog}: {message}\n")
