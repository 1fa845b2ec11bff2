// Calls one tool with the TypeScript client and prints what happens as JSON lines; it opens no link itself.
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';

const { url, token, tool, arguments: args, elicitation, decision, patience } = JSON.parse(process.argv[2]);
const say = (line) => console.log(JSON.stringify(line));

const client = new Client(
  { name: 'byline-tests', version: '1.0.0' },
  {
    capabilities: elicitation ? { elicitation: { url: {} } } : {},
    versionNegotiation: { mode: 'auto' },
  },
);
if (elicitation) {
  client.setRequestHandler('elicitation/create', ({ params }) => {
    say({ open: params.url, message: params.message });
    return { action: decision };
  });
}

await client.connect(
  new StreamableHTTPClientTransport(new URL(url), {
    requestInit: { headers: { Authorization: `Bearer ${token}` } },
  }),
);
say({ protocol: client.getNegotiatedProtocolVersion() });
await client.listTools();
try {
  say({ result: await client.callTool({ name: tool, arguments: args }, { timeout: patience }) });
} catch (error) {
  say({ error: String(error) });
}
await client.close();
