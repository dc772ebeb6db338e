"""What is in a folder, to tell whether a program changed it."""

from jukebox_core.files import sha256


def contents(folder):
    """{path: SHA-256} of every file in a folder and its subfolders."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}
