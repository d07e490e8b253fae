"""Reads an answer with the openai package: python read_with_openai.py <url>"""

import json
import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
messages = [{"role": "user", "content": "What is new?"}]
try:
    for chunk in client.chat.completions.create(model="any", messages=messages, stream=True):
        print(json.dumps(chunk.choices[0].delta.content), flush=True)
except json.JSONDecodeError:
    print(json.dumps("not JSON"))
    sys.exit(1)
