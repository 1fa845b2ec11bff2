// Runs the certified OpenID provider for tests, where alice and bob can sign in with any password; it keeps no data.
import { randomBytes, randomUUID } from 'node:crypto';
import { SignJWT, importJWK } from 'jose';
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

// The provider itself knows no assertion for another server (ID-JAG), and has this place for grants of one's own.
provider.registerGrantType(
  'urn:ietf:params:oauth:grant-type:token-exchange',
  async (ctx) => {
    const { client, params } = ctx.oidc;
    const { payload } = await provider.IdToken.validate(params.subject_token, client);
    const assertion = new SignJWT({ client_id: params.client_at_audience, resource: params.resource })
      .setProtectedHeader({ alg: 'RS256', kid: key.kid, typ: 'oauth-id-jag+jwt' })
      .setIssuer(provider.issuer)
      .setSubject(payload.sub)
      .setAudience(params.audience)
      .setJti(randomUUID())
      .setIssuedAt()
      .setExpirationTime('5 minutes');
    ctx.body = {
      access_token: await assertion.sign(await importJWK(key, 'RS256')),
      issued_token_type: params.requested_token_type,
      token_type: 'N_A',
      expires_in: 300,
    };
  },
  ['audience', 'resource', 'client_at_audience', 'requested_token_type', 'subject_token', 'subject_token_type'],
);

provider.listen(port, '127.0.0.1');
