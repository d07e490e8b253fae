// Runs the published conformance tests against a server: vitest run durable_streams.test.mjs
import { runConformanceTests } from '@durable-streams/server-conformance-tests';

runConformanceTests({ baseUrl: process.env.CONFORMANCE_TEST_URL, longPollTimeoutMs: Number(process.env.LONG_POLL_TIMEOUT) });
