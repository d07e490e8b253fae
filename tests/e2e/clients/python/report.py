"""Writes what a client dispatches, a line of JSON for each event."""

import json
import sys


def urls():
    """The URLs of the command line, each after a line with the URL."""
    for url in filter(lambda argument: not argument.startswith("-"), sys.argv[1:]):
        write({"url": url})
        yield url


def report(kind, data):
    """Writes an event. Returns whether it is the last one of its stream."""
    write({"type": kind, "data": data})
    return kind == "end"


def write(value):
    # Not to sys.stdout, which a script may redirect.
    print(json.dumps(value), file=sys.__stdout__, flush=True)
