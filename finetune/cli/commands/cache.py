"""`gptft cache`."""

import time
from itertools import groupby

from typer import Option

from finetune.cli.console import console, format_bytes, format_count, make_table, print_line
from finetune.storage.cache import CacheEntry, clear, list_entries, read_limit
from finetune.storage.files import cache_folder


def cache(
    clear_all: bool = Option(False, "--clear", help="Delete everything in the cache."),
) -> None:
    """Show or clear the cache of encoded rows and converted bases.

    Example: gptft cache --clear

    The cache is in $GPTFT_CACHE, or in the user's cache folder. Encoded rows need at most
    $GPTFT_CACHE_LIMIT GiB (20 without it); the least recently used are deleted first.
    """
    folder = cache_folder()
    if clear_all:
        entries = clear(folder)
        size = format_bytes(sum(entry.size for entry in entries))
        print_line(f"Deleted {format_count(len(entries), 'entry', 'entries')}, {size}.")
        return
    entries = list_entries(folder)
    print_line((str(folder), "bold"))
    if not entries:
        print_line("The cache is empty.")
        return
    rows = [
        _describe(kind, list(group))
        for kind, group in groupby(
            sorted(entries, key=lambda entry: entry.kind, reverse=True), lambda entry: entry.kind
        )
    ]
    console().print(make_table(["content", "entries", "size", "at most", "last used"], rows))
    print_line("`gptft cache --clear` deletes all; what is needed is made again.")


def _describe(kind: str, entries: list[CacheEntry]) -> list[str]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(max(entry.used for entry in entries)))
    limit = format_bytes(read_limit()) if kind == "encoded rows" else ""
    size = format_bytes(sum(entry.size for entry in entries))
    return [kind, f"{len(entries):,}", size, limit, used]
