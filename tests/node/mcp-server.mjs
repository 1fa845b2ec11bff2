// Runs an MCP server of a TypeScript SDK for tests, which keeps notes and counts them; one of the second generation is
// strict and speaks 2026-07-28 alone, one of the first takes sessions where asked to.
import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';

const { port, sdk, sessions } = JSON.parse(process.argv[2]);
const info = { name: 'notes', version: '1.0.0' };
const offers = { capabilities: { tools: {} } };
const tools = [{ name: 'add_note', inputSchema: { type: 'object' } }];
let kept = 0;
const keep = ({ params }) => {
  const structuredContent = { text: params.arguments.text, kept: ++kept };
  return { content: [{ type: 'text', text: JSON.stringify(structuredContent) }], structuredContent };
};

const whole = async (request) => {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  return Buffer.concat(pieces);
};

async function strict() {
  const { Server, createMcpHandler } = await import(sdk);
  const handler = createMcpHandler(
    () => {
      const server = new Server(info, offers);
      server.setRequestHandler('tools/list', () => ({ tools }));
      server.setRequestHandler('tools/call', keep);
      return server;
    },
    { legacy: 'reject' },
  );
  return async (request, response) => {
    const body = await whole(request);
    const { url, method, headers } = request;
    const asked = new Request(`http://127.0.0.1${url}`, { method, headers, body: body.length ? body : undefined });
    const answer = await handler.fetch(asked);
    response.writeHead(answer.status, Object.fromEntries(answer.headers));
    response.end(Buffer.from(await answer.arrayBuffer()));
  };
}

async function older() {
  const { Server } = await import(`${sdk}/server/index.js`);
  const { StreamableHTTPServerTransport } = await import(`${sdk}/server/streamableHttp.js`);
  const { CallToolRequestSchema, ListToolsRequestSchema } = await import(`${sdk}/types.js`);
  const open = new Map();
  const opened = async () => {
    const server = new Server(info, offers);
    server.setRequestHandler(ListToolsRequestSchema, () => ({ tools }));
    server.setRequestHandler(CallToolRequestSchema, keep);
    const transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: sessions ? randomUUID : undefined,
      onsessioninitialized: (id) => open.set(id, transport),
    });
    server.onclose = () => open.delete(transport.sessionId);
    await server.connect(transport);
    return transport;
  };
  return async (request, response) => {
    if (request.url === '/sessions') return response.end(String(open.size));
    const transport = open.get(request.headers['mcp-session-id']) ?? (await opened());
    await transport.handleRequest(request, response);
  };
}

const serve = await (sdk === '@modelcontextprotocol/server' ? strict() : older());
createServer(serve).listen(port, '127.0.0.1');
