"""Reads event streams with aiohttp-sse-client: python read_with_aiohttp_sse_client.py <url>..."""

import asyncio
from datetime import timedelta

from aiohttp_sse_client.client import EventSource
from report import report, urls


async def main():
    for url in urls():
        try:
            async with EventSource(url, reconnection_time=timedelta(milliseconds=100)) as source:
                async for event in source:
                    # The package has no type for an event without a name.
                    if report(event.type or "message", event.data):
                        break
        except Exception as error:
            report("error", type(error).__name__)


asyncio.run(main())
