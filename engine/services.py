"""Creates all long-lived objects of a process once, in one place, and closes them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx2

from engine.audit.attempts import RefusedAttempts
from engine.audit.trail import AuditTrail
from engine.authorization.answer_recorder import AnswerRecorder
from engine.authorization.delegation import Delegation
from engine.authorization.requests import AuthorizationRequests
from engine.callers.api_tokens import ApiTokens
from engine.callers.service_principals import ServicePrincipals
from engine.connections.catalogue import ConnectionCatalogue
from engine.connections.client_secrets import ClientSecrets
from engine.db.database import Database
from engine.db.migrate import require_current_schema
from engine.grants.accounts import Accounts
from engine.grants.grant_records import GrantRecords
from engine.grants.grants import Grants
from engine.grants.removal import GrantRemoval
from engine.grants.renewals import GrantRenewals
from engine.grants.revocations import Revocations
from engine.identity.principals import Principals
from engine.identity.roles import Roles
from engine.identity.signing import SigningKeys
from engine.notifications.channels import NotificationChannels
from engine.notifications.mail import MailSender
from engine.notifications.notifier import RunNotifier
from engine.notifications.posts import NotePoster
from engine.oauth.discovery import Discovery
from engine.oauth.registration import ClientRegistrations
from engine.outgoing.client import OutgoingClient
from engine.policy.policy import Policy, WatchedPolicyFile
from engine.questions.questions import Questions
from engine.runs.records import RunRecords
from engine.runs.verification import IdentityVerifier
from engine.settings import Settings
from engine.sign_in.authorization_code import AuthorizationCodeFlow
from engine.sign_in.device_sign_ins import DeviceSignIns
from engine.sign_in.identity_provider import IdentityProvider
from engine.sign_in.idp_assertions import IdpAssertions
from engine.sign_in.idp_sessions import IdpSessions
from engine.sign_in.methods import SignInMethods
from engine.sign_in.typed_keys import TypedKeys
from engine.tools.readiness import ReadinessChecker
from engine.tools.resource_changes import ResourceChanges
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
    signing_keys: SigningKeys
    principals: Principals
    roles: Roles
    policy: Policy
    api_tokens: ApiTokens
    service_principals: ServicePrincipals
    run_records: RunRecords
    identity_verifier: IdentityVerifier
    client_secrets: ClientSecrets
    catalogue: ConnectionCatalogue
    accounts: Accounts
    grants: Grants
    renewals: GrantRenewals
    revocations: Revocations
    grant_removal: GrantRemoval
    trail: AuditTrail
    attempts: RefusedAttempts
    waiters: Waiters
    authorization_requests: AuthorizationRequests
    answer_recorder: AnswerRecorder
    delegation: Delegation
    consent: AuthorizationCodeFlow
    typed_keys: TypedKeys
    device_sign_ins: DeviceSignIns
    sign_ins: SignInMethods
    registrations: ClientRegistrations
    idp_sessions: IdpSessions
    idp_assertions: IdpAssertions
    readiness_checker: ReadinessChecker
    questions: Questions
    resource_changes: ResourceChanges
    notification_channels: NotificationChannels
    notifier: RunNotifier
    outgoing: OutgoingClient
    webhooks: Webhooks
    http_client: httpx2.AsyncClient
    """The HTTP client that actions use for their upstreams."""


@asynccontextmanager
async def open_services(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[Services]:
    """Open the services of a process. `environment` holds the client secrets that connections refer to."""
    async with AsyncExitStack() as exit_stack:
        database = Database(settings.database)
        exit_stack.push_async_callback(database.close_connections)
        await require_current_schema(database)
        key_providers, keyring = open_key_providers(settings.vault)
        data_key_database = Database(settings.database.model_copy(update={"pool_size": 1}))
        data_keys = DataKeys(data_key_database, key_providers, settings.vault.data_key_life)
        exit_stack.push_async_callback(data_keys.close_keys)
        await data_keys.open_keys()
        vault = Vault(data_keys, keyring)
        signing_keys = SigningKeys(database, vault)
        principals, roles, run_records = Principals(database), Roles(database), RunRecords(database)

        outgoing = await exit_stack.enter_async_context(OutgoingClient(settings.outgoing))
        registrations = ClientRegistrations(database, vault, outgoing, settings.public_url)
        discovery, idp_sessions = Discovery(outgoing), IdpSessions(database, vault)
        identity_provider = IdentityProvider(settings.gateway.issuer, discovery, idp_sessions)
        sign_ins = SignInMethods(environment, discovery, outgoing, registrations, identity_provider)
        accounts, revocations = (
            Accounts(database, principals),
            Revocations(database, vault, sign_ins.create_method),
        )
        grant_records = GrantRecords(database, vault, revocations)
        renewals = GrantRenewals(grant_records, sign_ins.create_method)
        grants = Grants(database, grant_records, renewals, accounts)
        trail = AuditTrail(database, signing_keys)
        client_secrets = ClientSecrets(database, vault)
        catalogue = ConnectionCatalogue(database, client_secrets)
        waiters = Waiters(database, run_records)
        authorization_requests = AuthorizationRequests(
            database, principals, run_records, grants, waiters, trail, settings.wait_limit
        )
        answer_recorder = AnswerRecorder(principals, accounts, grants, authorization_requests, waiters, trail)
        questions = Questions(database, principals, roles, waiters, trail, settings.wait_limit)
        delegation = Delegation(principals, roles)
        redirect_uri = f"{settings.public_url}/oauth/callback"
        notification_channels = NotificationChannels(database, vault, trail)
        mail_channel = MailSender(settings.notifications, settings.public_url)
        notifier = RunNotifier(
            notification_channels,
            mail_channel,
            NotePoster(outgoing),
            authorization_requests,
            questions,
            run_records,
            principals,
            roles,
            catalogue,
            settings.public_url,
        )
        exit_stack.push_async_callback(trail.finish_appends)
        yield Services(
            settings=settings,
            environment=environment,
            database=database,
            keyring=keyring,
            data_keys=data_keys,
            vault=vault,
            signing_keys=signing_keys,
            principals=principals,
            roles=roles,
            policy=Policy(WatchedPolicyFile(settings.policy_file).read_current_rules, roles),
            api_tokens=ApiTokens(database, principals, trail, settings.gateway.longest_api_token_life),
            service_principals=ServicePrincipals(principals, settings.public_url),
            run_records=run_records,
            identity_verifier=IdentityVerifier(signing_keys, run_records),
            client_secrets=client_secrets,
            catalogue=catalogue,
            accounts=accounts,
            grants=grants,
            renewals=renewals,
            revocations=revocations,
            grant_removal=GrantRemoval(catalogue, principals, grants, revocations, trail),
            trail=trail,
            attempts=RefusedAttempts(trail),
            waiters=waiters,
            authorization_requests=authorization_requests,
            answer_recorder=answer_recorder,
            delegation=delegation,
            consent=AuthorizationCodeFlow(
                database,
                vault,
                catalogue,
                grants,
                authorization_requests,
                answer_recorder,
                principals,
                delegation,
                trail,
                sign_ins,
                redirect_uri,
            ),
            device_sign_ins=DeviceSignIns(
                database,
                vault,
                catalogue,
                authorization_requests,
                answer_recorder,
                delegation,
                trail,
                sign_ins,
            ),
            sign_ins=sign_ins,
            registrations=registrations,
            idp_sessions=idp_sessions,
            idp_assertions=IdpAssertions(
                database, principals, grants, authorization_requests, answer_recorder, trail, sign_ins
            ),
            typed_keys=TypedKeys(
                catalogue, authorization_requests, answer_recorder, delegation, trail, sign_ins
            ),
            readiness_checker=ReadinessChecker(database, catalogue, grants),
            questions=questions,
            resource_changes=ResourceChanges(database),
            notification_channels=notification_channels,
            notifier=notifier,
            outgoing=outgoing,
            webhooks=Webhooks(database, vault, principals, roles, trail),
            http_client=outgoing.http_client,
        )
