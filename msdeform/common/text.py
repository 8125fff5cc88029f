"""Words for what is printed."""

import difflib
import re
from collections.abc import Iterable, Sequence

# control characters, ends of lines, marks that turn the direction of text, and halves of characters, which no encoding
# can write; not the joiners and spaces that words and emoji of some languages need
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` with what a terminal would obey instead of showing, ends of lines and escapes, as ``\\n``, ``\\x1b``."""
    return UNPRINTABLE.sub(lambda letter: letter[0].encode("unicode_escape").decode("ascii"), text)


def counted(count: int, noun: str) -> str:
    """A number and its noun, such as "1 image", "2 images", "2 boxes"."""
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith(('x', 's')) else 's'}"


def either(words: Sequence[str]) -> str:
    """Words with commas between them, and "or" before the last."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def shown(value: object, most: int = 200) -> str:
    """What a file says, as part of a sentence: on one line, control characters written out, a long text cut."""
    text = str(value)
    text = text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"
    return printable(text)


def suggest(sentence: str, name: str, known: Iterable[str], otherwise: str = "", most: int = 1) -> str:
    """``sentence; did you mean X?`` for a known name that is near to ``name``, else ``sentence; otherwise``."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=most, cutoff=0.6)
    near = near or [one for one in known if len(name) > 2 and name in one][:most]
    advice = f"did you mean {' or '.join(near)}?" if near else otherwise
    return f"{sentence}; {advice}" if advice else sentence


def nearest(what: str, name: str, known: Sequence[str]) -> str:
    """The sentence for a name that is not known: with the nearest that there are, or all."""
    return suggest(f"no {what} is called {shown(name)!r}", name, known, f"there are {', '.join(known)}", most=3)
