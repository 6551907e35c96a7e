"""Reads and uses a `tokenizer.json` in a process of its own: the library may end a process on damaged contents.

It is run as a program, `python _tokenizer_trial.py FILE`, and imports nothing of this package, so that it starts in a
moment. Exit status 0: the file works. `REFUSED`: the library raised an error, whose message is printed.
"""

import contextlib
import sys
from pathlib import Path

TEXTS = ("A photo of a cat.", "", "é 🐱  <eos> x")
MOST_IDS = 2**31
REFUSED = 3
MEMORY = 4 * 2**30  # bytes, besides 50 times the size of the file


def main(file: str) -> int:
    """Reads a file and uses it on some texts; returns the exit status."""
    import tokenizers

    data = Path(file).read_bytes()
    with contextlib.suppress(ImportError, ValueError, OSError):  # another system, or a lower limit
        import resource

        most = MEMORY + 50 * len(data)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
        if max(tokenizer.get_vocab().values(), default=0) >= MOST_IDS:
            raise ValueError(f"ids must be below {MOST_IDS}")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        for encoding in tokenizer.encode_batch(list(TEXTS), add_special_tokens=False):
            tokenizer.decode(encoding.ids)
        tokenizer.to_str()
    except BaseException as error:  # also PanicException, which is no Exception
        print(" ".join(str(error).split())[:200])
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
