// Runs the certified OpenID provider for tests, where alice and bob can sign in with any password; it keeps no data.
import { randomBytes } from 'node:crypto';
import Provider from 'oidc-provider';
import { addStatementGrants } from './statement-grants.mjs';

const { port, clients, scopes, key, statements, documents } = JSON.parse(process.argv[2]);
// The pages of a device's code with their buttons inside the form, where a browser without scripts finds them too.
const page = (form, button) => `<!doctype html><title>Device</title>${form.replace('</form>', `${button}</form>`)}`;
const next = '<button>Continue</button>';
const abort = '<button name="abort" value="yes">Abort</button>';
const people = new Map([
  ['alice', 'Alice Example'],
  ['bob', 'Bob Example'],
]);

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients,
  scopes: ['openid', 'offline_access', ...scopes],
  claims: { openid: ['sub'], profile: ['name'], email: ['email', 'email_verified'] },
  cookies: { keys: [randomBytes(32).toString('hex')] },
  jwks: { keys: [key] },
  // Documents lie at https addresses that no name server knows, and are served by this machine.
  fetch: (url, options) => {
    const { origin, pathname } = new URL(url);
    if (!(origin in documents)) return globalThis.fetch(url, options);
    return globalThis.fetch(documents[origin] + pathname, { ...options, dispatcher: undefined });
  },
  pkce: { required: () => true },
  rotateRefreshToken: true,
  issueRefreshToken: (ctx, client) => client.grantTypeAllowed('refresh_token'),
  features: {
    registration: { enabled: true },
    clientCredentials: { enabled: true },
    revocation: { enabled: true },
    clientIdMetadataDocument: { enabled: Object.keys(documents).length > 0, ack: 'draft-02' },
    deviceFlow: {
      enabled: true,
      userCodeInputSource: (ctx, form) => {
        ctx.body = page(form, next);
      },
      userCodeConfirmSource: (ctx, form) => {
        ctx.body = page(form, next + abort);
      },
    },
    resourceIndicators: {
      enabled: true,
      useGrantedResource: () => true,
      getResourceServerInfo: (ctx, resource) => ({
        scope: scopes.join(' '),
        audience: resource,
        accessTokenFormat: 'jwt',
      }),
    },
  },
  findAccount: (ctx, id) =>
    people.has(id)
      ? {
          accountId: id,
          claims: () => ({
            sub: id,
            name: people.get(id),
            email: `${id}@example.com`,
            email_verified: true,
          }),
        }
      : undefined,
});

addStatementGrants(provider, key, statements);
provider.listen(port, '127.0.0.1');
