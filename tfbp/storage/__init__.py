"""Files and folders that are there whole or not at all: written beside, synced, renamed.

A manifest lists what a folder holds, so that a bit that flips later is noticed; a lock keeps a
second process out. What a disk refuses becomes a user's error, once partial files are removed.
"""

from tfbp.storage.disk import require_space
from tfbp.storage.locking import lock
from tfbp.storage.manifest import MANIFEST, Damaged, verify
from tfbp.storage.publishing import (
    publish,
    remove,
    replacing,
    sweep,
    write_bytes,
    write_manifest,
    write_text,
)

__all__ = [
    "MANIFEST",
    "Damaged",
    "lock",
    "publish",
    "remove",
    "replacing",
    "require_space",
    "sweep",
    "verify",
    "write_bytes",
    "write_manifest",
    "write_text",
]
