"""Data sets for the tests of evaluation: the example images of the package, and examples that are given."""

import dataclasses

from siglip_jax.assets import EXAMPLES
from siglip_jax.data.example import Example


@dataclasses.dataclass(frozen=True)
class Listed:
    """A source of these examples; one that is an error is raised when it is asked for."""

    examples: list[Example | Exception]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        example = self.examples[index]
        if isinstance(example, Exception):
            raise example
        return example


def pictograms() -> Listed:
    """Returns the 64 example images, each with its name as its label and its text."""
    classes = tuple((EXAMPLES / "labels.txt").read_text(encoding="utf-8").splitlines())
    files = [EXAMPLES / f"{name}.png" for name in classes]
    examples = [Example(file.read_bytes(), (file.stem,), i, file.name) for i, file in enumerate(files)]
    return Listed(examples, classes)
