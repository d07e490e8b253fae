"""Reads event streams with requests-sse: python read_with_requests_sse.py <url>..."""

from datetime import timedelta

from report import report, urls
from requests_sse import EventSource

for url in urls():
    try:
        with EventSource(url, reconnection_time=timedelta(milliseconds=100)) as source:
            for event in source:
                if report(event.type, event.data):
                    break
    except Exception as error:
        report("error", type(error).__name__)
