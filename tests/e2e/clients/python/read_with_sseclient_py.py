"""Reads event streams with sseclient-py over requests: python read_with_sseclient_py.py <url>..."""

import requests
from report import report, urls

from sseclient import SSEClient

for url in urls():
    try:
        response = requests.get(url, headers={"Accept": "text/event-stream"}, stream=True)
        response.raise_for_status()
        for event in SSEClient(response).events():
            if report(event.event, event.data):
                break
    except Exception as error:
        report("error", type(error).__name__)
