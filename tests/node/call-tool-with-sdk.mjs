// Calls one tool with the TypeScript SDK of protocol 2025-11-25, in the same words as call-tool.mjs.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { CallToolResultSchema, ElicitRequestSchema } from '@modelcontextprotocol/sdk/types.js';

const { url, token, tool, arguments: args, elicitation } = JSON.parse(process.argv[2]);
const say = (line) => console.log(JSON.stringify(line));

const client = new Client(
  { name: 'byline-tests', version: '1.0.0' },
  { capabilities: elicitation ? { elicitation: { url: {} } } : {} },
);
if (elicitation) {
  client.setRequestHandler(ElicitRequestSchema, ({ params }) => {
    say({ open: params.url, message: params.message });
    return { action: 'accept' };
  });
}

const transport = new StreamableHTTPClientTransport(new URL(url), {
  requestInit: { headers: { Authorization: `Bearer ${token}` } },
});
await client.connect(transport);
say({ protocol: transport.protocolVersion });
const call = { name: tool, arguments: args };
say({ result: await client.callTool(call, CallToolResultSchema, { timeout: 120_000 }) });
await client.close();
