"""Canonical text, the form of SigLIP's training texts: lower case, no ASCII punctuation, single blanks."""

import string

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def canonicalize(text: str, *, keep: str = "", lower_case: bool = True) -> str:
    """Returns a text in canonical form.

    Source: `canonicalize_text` in `big_vision/evaluators/proj/image_text/prompt_engineering.py`.

    Args:
      text: any text.
      keep: string whose occurrences are kept unchanged, such as "{}"; "": nothing is kept.
      lower_case: whether the text is lower-cased.

    Returns:
      The text without ASCII punctuation, with single blanks between words and none at the ends.

    Example:
      >>> canonicalize("A photo, of {}!", keep="{}")
      'a photo of {}'
    """
    text = text.lower() if lower_case else text
    parts = text.split(keep) if keep else [text]
    return " ".join(keep.join(map(remove_punctuation, parts)).split())


def remove_punctuation(text: str) -> str:
    """Returns a text without the 32 ASCII punctuation marks.

    Args:
      text: any text.
    """
    return text.translate(_PUNCTUATION)


def replace_surrogates(text: str) -> str:
    """Returns a text that UTF-8 can encode: halves of surrogate pairs become one character or U+FFFD.

    Python represents bytes that are not UTF-8, for example in an argument of the command line, by such halves.

    Args:
      text: any text.

    Example:
      >>> replace_surrogates("caf\\udce9, \\ud83d\\udc31") == "caf\ufffd, \U0001f431"
      True
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
