// Reads answers with the chat transport of Vercel's `ai`: node read_with_ai.cjs <url>...
const { DefaultChatTransport } = require('ai');
const { forEachUrl, report } = require('./report.cjs');

forEachUrl(async (api) => {
  const chunks = await new DefaultChatTransport({ api }).sendMessages({
    chatId: 'chat',
    messages: [],
    trigger: 'submit-message',
  });
  for await (const chunk of chunks) {
    report(chunk.type, chunk.delta ?? '');
  }
  report('closed', '');
});
