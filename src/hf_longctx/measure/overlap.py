"""How many words a question shares with what answers it: the shortcut that a literal needle offers.

A needle that repeats the question's words can be found by matching words; one without them has to be understood
(NoLiMa, arXiv 2502.05167).
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")
_STOP_WORDS = """
a about all also among an and any are as at be been between by did do does for from had has have he her him his
in into is it its not of on one or out she so some than that the their them then there these they this those to
was were what when where which who whom whose will with text found answer name alone
"""
_COMMON = frozenset(_STOP_WORDS.split())


def content_words(text: str) -> frozenset[str]:
    """The words of a text that carry meaning, in lower case, a plural s taken off.

    >>> sorted(content_words("Which of the secret numbers is it?"))
    ['number', 'secret']
    """
    words = (word.casefold() for word in _WORD.findall(text))
    return frozenset(_stem(word) for word in words if word not in _COMMON)


def literal_overlap(needle: str, question: str) -> float:
    """The share of a question's content words that its needle holds too.

    Args:
        needle: the sentences that the answer has to be taken from.
        question: what is asked.

    Returns:
        0 (no word in common) to 1; 0 for a question without content words.

    >>> literal_overlap("The magic number of Rome is 7.", "What is the magic number of Rome?")
    1.0
    >>> literal_overlap("Ada painted the view from the Eiffel Tower.", "Who has been to France?")
    0.0
    """
    asked = content_words(question)
    return len(asked & content_words(needle)) / len(asked) if asked else 0.0


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
