"""File names for tensors, which may be called anything: `../../x`, `a/b:0`, `CON`, nothing at all."""

from __future__ import annotations

import hashlib
import re

_DIGEST = 12  # hex digits: 48 bits, so that ten thousand names collide with a chance of 2e-7
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # devices on Windows, whatever follows the dot


def file_stem(name: str, *, length: int = 60) -> str:
    """A file name without suffix, of at most `length` characters out of A-Z, a-z, 0-9, `.`, `_` and `-`.

    It begins with what is readable of `name` (never with a dot or a dash) and ends with a digest of the whole of it, so
    that different names have different files, on file systems that ignore case too.

    Raises:
        ValueError: `length` leaves no room for the digest.
    """
    room = length - _DIGEST - 1
    if room < 1:
        raise ValueError(f"length must be at least {_DIGEST + 2}, not {length}")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".-_")
    if _RESERVED.fullmatch(readable):
        readable = "_" + readable
    readable = readable[:room].rstrip(".-_") or "x"
    return f"{readable}-{digest}"
