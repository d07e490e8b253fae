// Leaves an answer of the `protocols` example with the package `ai`, and resumes it as `useChat` does:
// node resume_with_ai.cjs <url>
const { DefaultChatTransport, readUIMessageStream } = require('ai');

const write = (object) => console.log(JSON.stringify(object));
const textOf = (message) => message.parts.map(({ text }) => text ?? '').join('');

(async () => {
  const transport = new DefaultChatTransport({ api: `${process.argv[2]}/api/chat` });
  const left = new AbortController();
  const messages = [{ id: '1', role: 'user', parts: [{ type: 'text', text: 'What is new?' }] }];
  const stream = await transport.sendMessages({ chatId: 'chat', messages, trigger: 'submit-message', abortSignal: left.signal });
  try {
    for await (const { type, delta } of stream) {
      if (type === 'text-delta') {
        write({ left: delta });
        left.abort();
      }
    }
  } catch ({ name }) {
    write({ name });
  }
  const resumed = await transport.reconnectToStream({ chatId: 'chat' });
  let last;
  for await (const message of readUIMessageStream({ stream: resumed })) last = message;
  write({ resumed: textOf(last) });
  write({ complete: await transport.reconnectToStream({ chatId: 'chat' }) });
  write({ unknown: await transport.reconnectToStream({ chatId: 'other' }) });
})();
