// Reads answers with Anthropic's package: node read_with_anthropic.cjs <url>...
const { Anthropic } = require('@anthropic-ai/sdk');
const { forEachUrl, report } = require('./report.cjs');

forEachUrl(async (baseURL) => {
  const client = new Anthropic({ baseURL, apiKey: 'none', maxRetries: 0, logLevel: 'off' });
  const messages = [{ role: 'user', content: 'What is new?' }];
  for await (const event of await client.messages.create({ model: 'any', max_tokens: 9, messages, stream: true })) {
    report(event.type ?? 'without type', event.delta?.text ?? '');
  }
  report('closed', '');
});
