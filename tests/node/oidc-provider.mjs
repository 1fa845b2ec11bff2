// Runs the certified OpenID provider for tests, where alice and bob can sign in with any password; it keeps no data.
import { randomBytes } from 'node:crypto';
import Provider from 'oidc-provider';

const { port, clients, scopes, key } = JSON.parse(process.argv[2]);
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
  pkce: { required: () => true },
  rotateRefreshToken: true,
  issueRefreshToken: (ctx, client) => client.grantTypeAllowed('refresh_token'),
  features: {
    registration: { enabled: true },
    clientCredentials: { enabled: true },
    revocation: { enabled: true },
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

provider.listen(port, '127.0.0.1');
