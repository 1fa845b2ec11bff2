// The grants of RFC 7523, RFC 8693 and identity assertions for the OpenID provider of tests, which has none of them itself.
import { createLocalJWKSet, createRemoteJWKSet, decodeJwt, decodeProtectedHeader, importJWK, jwtVerify, SignJWT } from 'jose';
import { errors } from 'oidc-provider';

const ID_JAG = 'urn:ietf:params:oauth:token-type:id-jag';
const ID_JAG_TYPE = 'oauth-id-jag+jwt';

/**
 * `vouches` says which client an audience knows whoever asks here as, for identity assertions that this provider issues;
 * at an audience that it does not name, a client may say so itself, as `client_at_audience`.
 * `trusts` says of which issuers it takes statements, and which audience their ID tokens have to have.
 */
export function addStatementGrants(provider, key, { vouches = {}, trusts = {} }) {
  const { alg, kid } = key;
  const own = createLocalJWKSet({ keys: [{ kty: key.kty, n: key.n, e: key.e, alg, kid }] });
  const remote = (issuer) => createRemoteJWKSet(new URL(`${issuer}/jwks`));

  const held = async (statement, keys, expected) => {
    try {
      return (await jwtVerify(statement, keys, { requiredClaims: ['sub', 'exp'], ...expected })).payload;
    } catch (problem) {
      throw new errors.InvalidGrant('the statement does not hold', problem.message);
    }
  };

  const issued = async (ctx, accountId, scope = '') => {
    const { client } = ctx.oidc;
    const grant = new provider.Grant({ accountId, clientId: client.clientId });
    grant.addOIDCScope(`openid ${scope}`);
    const token = new provider.AccessToken({
      accountId, client, grantId: await grant.save(), gty: 'statement', scope: `openid ${scope}`.trim(),
    });
    ctx.oidc.entity('AccessToken', token);
    return {
      access_token: await token.save(), token_type: 'Bearer', expires_in: token.expiration, scope: token.scope,
    };
  };

  const ofService = async (ctx, { assertion, scope }) => {
    const { client } = ctx.oidc;
    await held(assertion, createLocalJWKSet(client.jwks), { issuer: client.clientId, audience: `${provider.issuer}/token` });
    const token = new provider.ClientCredentials({ client, scope });
    ctx.oidc.entity('ClientCredentials', token);
    return { access_token: await token.save(), token_type: 'Bearer', expires_in: token.expiration, scope };
  };

  const ofPerson = async (ctx, { assertion }) => {
    const { iss } = decodeJwt(assertion);
    if (!(iss in trusts)) throw new errors.InvalidGrant('the issuer of the statement is not trusted');
    const claims = await held(assertion, remote(iss), { issuer: iss, audience: provider.issuer, typ: ID_JAG_TYPE });
    if (claims.client_id !== ctx.oidc.client.clientId) {
      throw new errors.InvalidGrant('the statement was made for another client');
    }
    return issued(ctx, claims.sub, claims.scope);
  };

  provider.registerGrantType(
    'urn:ietf:params:oauth:grant-type:jwt-bearer',
    async (ctx) => {
      const { params } = ctx.oidc;
      const { typ } = decodeProtectedHeader(params.assertion);
      ctx.body = await (typ === ID_JAG_TYPE ? ofPerson : ofService)(ctx, params);
    },
    ['assertion', 'scope', 'resource'],
  );

  provider.registerGrantType(
    'urn:ietf:params:oauth:grant-type:token-exchange',
    async (ctx) => {
      const { client, params } = ctx.oidc;
      const { iss } = decodeJwt(params.subject_token);
      const isOwn = iss === provider.issuer;
      if (!isOwn && !(iss in trusts)) throw new errors.InvalidGrant('the issuer of the statement is not trusted');
      const audience = isOwn ? client.clientId : trusts[iss];
      const { sub } = await held(params.subject_token, isOwn ? own : remote(iss), { issuer: iss, audience });
      if (params.requested_token_type !== ID_JAG) {
        const answer = await issued(ctx, sub, params.scope);
        ctx.body = { ...answer, issued_token_type: 'urn:ietf:params:oauth:token-type:access_token' };
        return;
      }
      const known = vouches[params.audience] ?? params.client_at_audience;
      if (!known) throw new errors.AccessDenied('nobody here may use that application');
      const assertion = await new SignJWT({
        client_id: known, resource: params.resource, scope: params.scope, jti: crypto.randomUUID(),
      })
        .setProtectedHeader({ alg, kid, typ: ID_JAG_TYPE })
        .setIssuer(provider.issuer).setSubject(sub).setAudience(params.audience).setIssuedAt().setExpirationTime('5m')
        .sign(await importJWK(key, alg));
      ctx.body = {
        issued_token_type: ID_JAG, access_token: assertion, token_type: 'N_A', scope: params.scope, expires_in: 300,
      };
    },
    ['subject_token', 'subject_token_type', 'requested_token_type', 'audience', 'resource', 'scope', 'client_at_audience'],
  );
}
