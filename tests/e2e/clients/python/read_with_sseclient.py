"""Reads event streams with sseclient: python read_with_sseclient.py <url>..."""

from contextlib import redirect_stdout
import sys

from report import report, urls

from sseclient import SSEClient

# The package reads the connection itself. On one that stays open, it waits for ever after the end of a response.
KEEP_ALIVE = "--keep-alive" in sys.argv
HEADERS = {} if KEEP_ALIVE else {"Connection": "close"}

for url in urls():
    try:
        # The package prints the errors after which it reconnects.
        with redirect_stdout(sys.stderr):
            for event in SSEClient(url, retry=100, headers=dict(HEADERS)):
                if report(event.event, event.data):
                    break
    except Exception as error:
        report("error", type(error).__name__)
