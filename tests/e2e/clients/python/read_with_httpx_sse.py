"""Reads event streams with httpx-sse: python read_with_httpx_sse.py <url>..."""

import httpx
from httpx_sse import connect_sse
from report import report, urls

with httpx.Client() as client:
    for url in urls():
        try:
            with connect_sse(client, "GET", url) as source:
                source.response.raise_for_status()
                for event in source.iter_sse():
                    if report(event.event, event.data):
                        break
        except Exception as error:
            report("error", type(error).__name__)
