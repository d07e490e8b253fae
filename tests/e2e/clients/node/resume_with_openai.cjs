// Leaves answers of the `protocols` example with OpenAI's package, and resumes them:
// node resume_with_openai.cjs <url>
const { OpenAI } = require('openai');

const write = (object) => console.log(JSON.stringify(object));

(async () => {
  const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: 'none', maxRetries: 0, logLevel: 'off' });
  const messages = [{ role: 'user', content: 'What is new?' }];
  const chunks = [];
  // Leaving the loop aborts the request.
  for await (const chunk of await client.chat.completions.create({ model: 'any', messages, stream: true })) {
    if (chunks.push(chunk) === 2) break;
  }
  const query = { starting_after: chunks.length };
  chunks.push(...(await collect(await client.get(`/chat/completions/${chunks[0].id}`, { query, stream: true }))));
  write({
    chunks: chunks.length,
    text: chunks.map(({ choices: [{ delta }] }) => delta.content ?? '').join(''),
    finish_reason: chunks.at(-1).choices[0].finish_reason,
  });

  const events = [];
  for await (const event of await client.responses.create({ model: 'any', input: 'What is new?', stream: true })) {
    if (events.push(event) === 3) break;
  }
  const { id } = events[0].response;
  const starting_after = events.at(-1).sequence_number;
  events.push(...(await collect(await client.responses.retrieve(id, { stream: true, starting_after }))));
  write({
    numbers: events.every(({ sequence_number }, i) => sequence_number === i),
    text: events.map(({ delta }) => delta ?? '').join(''),
    last: events.at(-1).type,
  });

  try {
    await client.responses.retrieve('resp_unknown', { stream: true });
  } catch ({ status }) {
    write({ status });
  }
})();

const collect = async (stream) => {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
};
