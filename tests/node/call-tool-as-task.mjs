// Calls one tool with the TypeScript client and the tasks extension, as call-tool.mjs does; it follows a task to its end.
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { createTaskSessionFromClient, resultFromTaskOutcome } from '@modelcontextprotocol/ext-tasks/client';

const { url, token, tool, arguments: args, elicitation, decision, patience } = JSON.parse(process.argv[2]);
const say = (line) => console.log(JSON.stringify(line));
const headers = { Authorization: `Bearer ${token}` };
const clientInfo = { name: 'byline-tests', version: '1.0.0' };
const capabilities = elicitation ? { elicitation: { url: {} } } : {};

const client = new Client(clientInfo, { capabilities, versionNegotiation: { mode: 'auto' } });
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
const protocol = client.getNegotiatedProtocolVersion();
say({ protocol });

// The extension leaves it to its host to send what the client itself has no types for.
let last = 0;
async function rawDispatch(request, { signal, context } = {}) {
  const deadline = AbortSignal.timeout(patience);
  const response = await fetch(url, {
    method: 'POST',
    headers: {
      ...headers,
      Accept: 'application/json, text/event-stream',
      'Content-Type': 'application/json',
      'MCP-Protocol-Version': protocol,
      'Mcp-Method': request.method,
      'Mcp-Name': request.params.taskId ?? request.params.name,
      ...context?.headers,
    },
    body: JSON.stringify({ jsonrpc: '2.0', id: `task-${(last += 1)}`, ...request }),
    signal: signal ? AbortSignal.any([signal, deadline]) : deadline,
  });
  const text = await response.text();
  const json = response.headers.get('Content-Type').startsWith('text/event-stream')
    ? text.split('\n').findLast((line) => line.startsWith('data: ')).slice('data: '.length)
    : text;
  const { result, error } = JSON.parse(json);
  return error ? { kind: 'error', error } : { kind: 'result', result };
}

const session = createTaskSessionFromClient(client, {
  endpointId: url,
  rawDispatch,
  v2RequestFraming: { protocolVersion: protocol, clientInfo, clientCapabilities: capabilities },
  onInputRequest: ({ params }) => {
    say({ open: params.url, message: params.message });
    return { action: decision };
  },
});
try {
  const execution = await session.callTool(tool, args);
  const { outcome } = await execution.settle();
  say({ result: resultFromTaskOutcome(outcome), task: execution.handle?.taskId });
} catch (error) {
  say({ error: String(error) });
}
await session.close();
await client.close();
