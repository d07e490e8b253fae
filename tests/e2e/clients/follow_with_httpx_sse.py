"""Follows an event stream with httpx-sse: python follow_with_httpx_sse.py <url>"""

import json
import sys
import time

import httpx
from httpx_sse import connect_sse


def write(value):
    print(json.dumps(value), flush=True)


def events(client, url):
    """Yields the events of all connections, until a response has status 204."""
    last_event_id, delay = "", 1.0
    while True:
        # As bytes, because httpx rejects text that is not ASCII.
        headers = {"Last-Event-ID": last_event_id.encode()} if last_event_id else {}
        try:
            with connect_sse(client, "GET", url, headers=headers) as source:
                if source.response.status_code == 204:
                    return
                source.response.raise_for_status()
                for event in source.iter_sse():
                    # Each connection begins with an empty id, which does not replace the last one.
                    last_event_id = event.id or last_event_id
                    if event.retry is not None:
                        delay = event.retry / 1000
                    yield event
        # A connection that ends in the middle of the stream is a RemoteProtocolError, not a ReadError.
        except httpx.TransportError:
            pass
        time.sleep(delay)


# The default timeout of httpx is five seconds of silence, which is shorter than a usual heartbeat.
with httpx.Client(timeout=httpx.Timeout(5, read=60)) as client:
    for event in events(client, sys.argv[1]):
        # A checkpoint or a `retry`, which only moves the cursor or sets the delay, arrives as an event without data.
        if event.data or event.event != "message":
            write({"id": event.id, "type": event.event, "data": event.data})
        else:
            write({"cursor": event.id})
    write({"closed": 204})
