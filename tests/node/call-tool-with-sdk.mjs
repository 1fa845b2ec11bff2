// Calls one tool with a TypeScript SDK of its first generation, which one is the last argument, as call-tool.mjs does.
const { url, token, tool, arguments: args, elicitation, decision, patience } = JSON.parse(process.argv[2]);
const sdk = process.argv[3];
const { Client } = await import(`${sdk}/client/index.js`);
const { StreamableHTTPClientTransport } = await import(`${sdk}/client/streamableHttp.js`);
const { CallToolResultSchema, ElicitRequestSchema } = await import(`${sdk}/types.js`);
const say = (line) => console.log(JSON.stringify(line));

// The oldest of them does not keep the version that it agreed on.
class Attentive extends Client {
  async request(request, ...more) {
    const result = await super.request(request, ...more);
    if (request.method === 'initialize') say({ protocol: result.protocolVersion });
    return result;
  }
}

const client = new Attentive(
  { name: 'byline-tests', version: '1.0.0' },
  { capabilities: elicitation ? { elicitation: { url: {} } } : {} },
);
if (elicitation) {
  client.setRequestHandler(ElicitRequestSchema, ({ params }) => {
    say({ open: params.url, message: params.message });
    return { action: decision };
  });
}

const transport = new StreamableHTTPClientTransport(new URL(url), {
  requestInit: { headers: { Authorization: `Bearer ${token}` } },
});
await client.connect(transport);
await client.listTools();
try {
  const call = { name: tool, arguments: args };
  say({ result: await client.callTool(call, CallToolResultSchema, { timeout: patience }) });
} catch (error) {
  say({ error: String(error) });
}
await client.close();
