"""Reads event streams with aiosseclient: python read_with_aiosseclient.py <url>..."""

import asyncio

from aiosseclient import aiosseclient
from report import report, urls


async def main():
    for url in urls():
        try:
            async for event in aiosseclient(url):
                if report(event.event, event.data):
                    break
        except Exception as error:
            report("error", type(error).__name__)


asyncio.run(main())
