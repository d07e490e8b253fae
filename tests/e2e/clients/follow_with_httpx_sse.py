"""Follows an event stream with httpx-sse: python follow_with_httpx_sse.py <url>"""

import json
import sys
import time

import httpx
from httpx_sse import connect_sse


def write(value):
    print(json.dumps(value), flush=True)


def events(client, url):
    """The events of all connections, one after the other, until the server says that there are no more."""
    last_event_id, delay = "", 1.0
    while True:
        # As bytes: httpx refuses text that is not ASCII.
        headers = {"Last-Event-ID": last_event_id.encode()} if last_event_id else {}
        try:
            with connect_sse(client, "GET", url, headers=headers) as source:
                if source.response.status_code == 204:
                    return
                source.response.raise_for_status()
                for event in source.iter_sse():
                    # An id holds for what follows, but each connection begins without one.
                    last_event_id = event.id or last_event_id
                    if event.retry is not None:
                        delay = event.retry / 1000
                    yield event
        # Not ReadError alone: a connection that ends in the middle of the stream is a RemoteProtocolError.
        except httpx.TransportError:
            pass
        time.sleep(delay)


# By default httpx gives up after five seconds of silence, which is less than a usual heartbeat.
with httpx.Client(timeout=httpx.Timeout(5, read=60)) as client:
    for event in events(client, sys.argv[1]):
        # What only moves the place to come back to, or the delay, arrives like an event without data.
        if event.data or event.event != "message":
            write({"id": event.id, "type": event.event, "data": event.data})
        else:
            write({"place": event.id})
    write({"closed": 204})
