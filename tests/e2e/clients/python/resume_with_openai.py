"""Leaves answers of the `protocols` example with the openai package, and resumes them: python resume_with_openai.py <url>"""

import json
import sys

from openai import APIStatusError, OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)


def write(value):
    print(json.dumps(value), flush=True)


def first(stream, count):
    """The first items. Closes the connection."""
    with stream:
        return [item for item, _ in zip(stream, range(count))]


messages = [{"role": "user", "content": "What is new?"}]
chunks = first(client.chat.completions.create(model="any", messages=messages, stream=True), 2)
chunks += client.get(
    f"/chat/completions/{chunks[0].id}",
    cast_to=ChatCompletionChunk,
    options={"params": {"starting_after": len(chunks)}},
    stream=True,
    stream_cls=Stream[ChatCompletionChunk],
)
write({
    "chunks": len(chunks),
    "text": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
    "finish_reason": chunks[-1].choices[0].finish_reason,
})

events = first(client.responses.create(model="any", input="What is new?", stream=True), 3)
after = events[-1].sequence_number
events += client.responses.retrieve(events[0].response.id, stream=True, starting_after=after)
write({
    "numbers": all(event.sequence_number == i for i, event in enumerate(events)),
    "text": "".join(getattr(event, "delta", "") for event in events),
    "last": events[-1].type,
})

try:
    client.responses.retrieve("resp_unknown", stream=True)
except APIStatusError as error:
    write({"status": error.status_code})
