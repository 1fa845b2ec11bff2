"""Creates all long-lived objects of a process once, in one place, and closes them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx2

from engine.audit.attempts import Attempts
from engine.audit.trail import Trail
from engine.authorization.answering import Answering
from engine.authorization.consent import Consent
from engine.authorization.devices import DeviceSignIns
from engine.authorization.requests import AuthorizationRequests
from engine.authorization.standing_in import StandingIn
from engine.authorization.typed_keys import TypedKeys
from engine.authorization.vouching import Vouching
from engine.callers.api_tokens import ApiTokens
from engine.callers.service_principals import ServicePrincipals
from engine.changes.changes import ResourceChanges
from engine.connections.accounts import Accounts
from engine.connections.catalogue import Catalogue
from engine.connections.client_secrets import ClientSecrets
from engine.connections.discovery import Discovery
from engine.connections.grant_records import GrantRecords
from engine.connections.grants import Grants
from engine.connections.registration import Registrations
from engine.connections.renewals import Renewals
from engine.connections.revocations import Revocations
from engine.connections.sign_in.company import Company
from engine.connections.sign_in.methods import SignIns
from engine.db.database import Database
from engine.db.migrate import require_current
from engine.identity.company_sign_ins import CompanySignIns
from engine.identity.principals import Principals
from engine.identity.roles import Roles
from engine.identity.runs import RunRecords
from engine.identity.signing import SigningKeys
from engine.identity.verification import IdentityVerifier
from engine.notifications.channels import Channels
from engine.notifications.mail import Mail
from engine.notifications.notifier import Notifier
from engine.notifications.posts import Posts
from engine.outgoing.client import Outgoing
from engine.policy import Policy, WatchedPolicyFile
from engine.questions.questions import Questions
from engine.readiness import Readiness
from engine.settings import Settings
from engine.vault.data_keys import DataKeys
from engine.vault.key_providers import open_key_providers
from engine.vault.keyring import Keyring
from engine.vault.vault import Vault
from engine.waiting.waiters import Waiters
from engine.webhooks.webhooks import Webhooks


@dataclass(frozen=True, slots=True)
class Services:
    """The long-lived objects that the gateway, the worker and the command line share."""

    settings: Settings
    environment: Mapping[str, str]
    database: Database
    keyring: Keyring | None
    data_keys: DataKeys
    vault: Vault
    keys: SigningKeys
    principals: Principals
    roles: Roles
    policy: Policy
    api_tokens: ApiTokens
    service_principals: ServicePrincipals
    runs: RunRecords
    identities: IdentityVerifier
    client_secrets: ClientSecrets
    catalogue: Catalogue
    accounts: Accounts
    grants: Grants
    renewals: Renewals
    revocations: Revocations
    trail: Trail
    attempts: Attempts
    waiters: Waiters
    authorization: AuthorizationRequests
    answering: Answering
    standing_in: StandingIn
    consent: Consent
    typed_keys: TypedKeys
    devices: DeviceSignIns
    sign_ins: SignIns
    registrations: Registrations
    company_sign_ins: CompanySignIns
    vouching: Vouching
    readiness: Readiness
    questions: Questions
    changes: ResourceChanges
    channels: Channels
    notifier: Notifier
    outgoing: Outgoing
    webhooks: Webhooks
    http: httpx2.AsyncClient
    """The HTTP client that actions use for their upstreams."""


@asynccontextmanager
async def open_services(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[Services]:
    """Open the services of a process. `environment` holds the client secrets that connections refer to."""
    async with AsyncExitStack() as closing:
        database = Database(settings.database)
        closing.push_async_callback(database.close)
        await require_current(database)
        providers, keyring = open_key_providers(settings.vault)
        beside = Database(settings.database.model_copy(update={"pool_size": 1}))
        data_keys = DataKeys(beside, providers, settings.vault.data_key_life)
        closing.push_async_callback(data_keys.close)
        await data_keys.open()
        vault = Vault(data_keys, keyring)
        keys = SigningKeys(database, vault)
        principals, roles, runs = Principals(database), Roles(database), RunRecords(database)

        outgoing = await closing.enter_async_context(Outgoing(settings.outgoing))
        registrations = Registrations(database, vault, outgoing, settings.public_url)
        discovery, company_sign_ins = Discovery(outgoing), CompanySignIns(database, vault)
        company = Company(settings.gateway.issuer, discovery, company_sign_ins)
        sign_ins = SignIns(environment, discovery, outgoing, registrations, company)
        accounts, revocations = Accounts(database, principals), Revocations(database, vault, sign_ins.of)
        grant_records = GrantRecords(database, vault, revocations)
        renewals = Renewals(grant_records, sign_ins.of)
        grants = Grants(database, grant_records, renewals, accounts, revocations)
        trail = Trail(database, keys)
        client_secrets = ClientSecrets(database, vault)
        catalogue = Catalogue(database, client_secrets)
        waiters = Waiters(database, runs)
        requests = AuthorizationRequests(
            database, principals, runs, grants, waiters, trail, settings.wait_limit
        )
        answering = Answering(database, principals, accounts, grants, requests, waiters, trail)
        questions = Questions(database, principals, roles, waiters, trail, settings.wait_limit)
        standing_in = StandingIn(principals, roles)
        redirect_uri = f"{settings.public_url}/oauth/callback"
        channels = Channels(database, vault, trail)
        mail = Mail(settings.notifications, settings.public_url)
        notifier = Notifier(
            channels,
            mail,
            Posts(outgoing),
            requests,
            questions,
            runs,
            principals,
            roles,
            catalogue,
            settings.public_url,
        )
        closing.push_async_callback(trail.close)
        yield Services(
            settings=settings,
            environment=environment,
            database=database,
            keyring=keyring,
            data_keys=data_keys,
            vault=vault,
            keys=keys,
            principals=principals,
            roles=roles,
            policy=Policy(WatchedPolicyFile(settings.policy_file).rules, roles),
            api_tokens=ApiTokens(database, principals, trail, settings.gateway.longest_api_token_life),
            service_principals=ServicePrincipals(principals, trail, settings.public_url),
            runs=runs,
            identities=IdentityVerifier(keys, runs),
            client_secrets=client_secrets,
            catalogue=catalogue,
            accounts=accounts,
            grants=grants,
            renewals=renewals,
            revocations=revocations,
            trail=trail,
            attempts=Attempts(trail),
            waiters=waiters,
            authorization=requests,
            answering=answering,
            standing_in=standing_in,
            consent=Consent(
                database,
                vault,
                catalogue,
                grants,
                requests,
                answering,
                principals,
                standing_in,
                trail,
                sign_ins,
                redirect_uri,
            ),
            devices=DeviceSignIns(
                database, vault, catalogue, requests, answering, standing_in, trail, sign_ins
            ),
            sign_ins=sign_ins,
            registrations=registrations,
            company_sign_ins=company_sign_ins,
            vouching=Vouching(database, principals, grants, requests, answering, trail, sign_ins),
            typed_keys=TypedKeys(catalogue, requests, answering, standing_in, trail, sign_ins),
            readiness=Readiness(database, catalogue, grants),
            questions=questions,
            changes=ResourceChanges(database),
            channels=channels,
            notifier=notifier,
            outgoing=outgoing,
            webhooks=Webhooks(database, vault, principals, roles, trail),
            http=outgoing.http,
        )
