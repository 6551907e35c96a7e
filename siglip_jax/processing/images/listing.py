"""Lists the image files of a folder, and counts the files that are left out."""

import os
from collections.abc import Collection, Iterator

from siglip_jax.processing.images.formats import is_image_name

NOT_IMAGES, HIDDEN, SYSTEM = "not images", "hidden", "in folders of thumbnails or of the system"
# Folders that programs and systems make beside the user's images, in lower case; hidden ones need no name here.
_SYSTEM_FOLDERS = frozenset(
    ("@eadir", "@tmp", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "system volume information", "lost+found")
)
_NAMED = 5  # files of each reason that are kept by name


class LeftOut:
    """The files of folders that are not read as images: all are counted, and the first of each reason are named.

    Attributes:
      counts: number of files by reason: "not images", "hidden", or "in folders of thumbnails or of the system".
      names: the first paths of each reason, relative to the folder.

    Example:
      >>> left_out = LeftOut()
      >>> left_out.add("not images", "notes.txt")
      >>> str(left_out)
      "1 file is left out: 1 not images ('notes.txt')"
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.names: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        reasons = [
            f"{count:,} {reason} ({', '.join(map(repr, self.names[reason]))}{', ...' * (count > _NAMED)})"
            for reason in (NOT_IMAGES, HIDDEN, SYSTEM)
            if (count := self.counts.get(reason))
        ]
        return f"{len(self):,} {'file is' if len(self) == 1 else 'files are'} left out: {', '.join(reasons)}"

    def add(self, reason: str, name: str) -> None:
        """Counts a file.

        Args:
          reason: why it is left out.
          name: its path relative to the folder.
        """
        self.counts[reason] = self.counts.get(reason, 0) + 1
        names = self.names.setdefault(reason, [])
        if len(names) < _NAMED:
            names.append(name)

    def include(self, other: "LeftOut", folder: str) -> None:
        """Counts the files that are left out of a folder.

        Args:
          other: what is left out of the folder.
          folder: path of the folder relative to this one.
        """
        for reason, count in other.counts.items():
            for name in other.names[reason]:
                self.add(reason, os.path.join(folder, name))
            self.counts[reason] += count - len(other.names[reason])


def is_set_aside(folder: str) -> bool:
    """Returns whether the name of a folder is hidden, or that of thumbnails or of the system."""
    return folder.startswith(".") or folder.lower() in _SYSTEM_FOLDERS


def is_image(file: str) -> bool:
    """Returns whether the name of a file is that of an image, and not hidden."""
    return is_image_name(file) and not file.startswith(".")


def walk(
    folder: str | os.PathLike[str], aside: list[str] | None = None, *, recursive: bool = True
) -> Iterator[tuple[str, list[str]]]:
    """Yields (path, names of files) of a folder and of all folders in it that are not set aside.

    Symbolic links are followed, but a folder comes only once, by its own path if that is among them.

    Args:
      folder: the folder.
      aside: list to which the paths of files in folders that are set aside are appended; None: they are not listed.
      recursive: whether to walk the folders in it.
    """
    seen: set[str] = set()
    todo = [os.fspath(folder)]
    while todo:
        for directory, folders, files in os.walk(todo.pop(0)):
            real = os.path.realpath(directory)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            apart = [name for name in folders if is_set_aside(name)]
            if aside is not None:
                tops = [top for name in apart if not os.path.islink(top := os.path.join(directory, name))]
                walked = [found for top in tops for found in os.walk(top)]
                aside += [os.path.join(inside, file) for inside, _, names in walked for file in sorted(names)]
            folders[:] = [name for name in folders if name not in apart] if recursive else []
            yield directory, files
            links = [os.path.join(directory, name) for name in folders]
            todo += [link for link in links if os.path.islink(link)]


def list_images(
    folder: str | os.PathLike[str], *, recursive: bool = True, used: Collection[str] = ()
) -> tuple[list[str], LeftOut]:
    """Returns the sorted paths of the images in a folder, relative to it, and what is left out.

    Args:
      folder: the folder.
      recursive: whether to list the folders in it too; folders that are hidden or of the system never are.
      used: endings of further files that the caller reads, which are not counted, such as ".txt".
    """
    images, left_out = [], LeftOut()
    aside: list[str] = []
    for directory, files in walk(folder, aside, recursive=recursive):
        for file in sorted(files):
            path = os.path.relpath(os.path.join(directory, file), folder)
            if is_image(file):
                images.append(path)
            elif file.startswith("."):
                left_out.add(HIDDEN, path)
            elif not file.lower().endswith(tuple(used)):
                left_out.add(NOT_IMAGES, path)
    for path in aside:
        left_out.add(SYSTEM, os.path.relpath(path, folder))
    return sorted(images), left_out
