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
from engine.grants.accounts import Accounts
from engine.grants.grants import Grants
from engine.grants.renewals import GrantRenewals
from engine.grants.revocations import Revocations
from engine.identity.principals import Principals
from engine.identity.roles import Roles
from engine.identity.signing import SigningKeys
from engine.notifications.channels import NotificationChannels
from engine.notifications.mail import MailSender
from engine.notifications.notifier import RunNotifier
from engine.notifications.posts import NotePoster
from engine.oauth.registration import ClientRegistrations
from engine.outgoing.client import OutgoingClient
from engine.policy.policy import Policy
from engine.questions.questions import Questions
from engine.runs.records import RunRecords
from engine.runs.verification import IdentityVerifier
from engine.service_groups import (
    ConnectionServices,
    PeopleServices,
    SignInServices,
    StorageServices,
    WaitServices,
    build_connections,
    build_people,
    build_sign_ins,
    build_waits,
    open_storage,
)
from engine.settings import Settings
from engine.sign_in.authorization_attempts import AuthorizationAttempts
from engine.sign_in.idp_assertions import IdpAssertions
from engine.sign_in.idp_sessions import IdpSessions
from engine.sign_in.methods import SignInMethods
from engine.sign_in.pending_device_codes import PendingDeviceCodes
from engine.sign_in.sign_ins import SignIns
from engine.tools.readiness import ReadinessChecker
from engine.tools.resource_changes import ResourceChanges
from engine.vault.data_keys import DataKeys
from engine.vault.keyring import Keyring
from engine.vault.vault import Vault
from engine.waiting.page_paths import PageLinks
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
    trail: AuditTrail
    attempts: RefusedAttempts
    waiters: Waiters
    authorization_requests: AuthorizationRequests
    answer_recorder: AnswerRecorder
    delegation: Delegation
    authorization_attempts: AuthorizationAttempts
    pending_device_codes: PendingDeviceCodes
    sign_in_methods: SignInMethods
    sign_ins: SignIns
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

    @property
    def page_links(self) -> PageLinks:
        """The links of the gateway's pages."""
        return PageLinks(self.settings.public_url)


@asynccontextmanager
async def open_services(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[Services]:
    """Open the services of a process. `environment` holds the client secrets that connections refer to."""
    async with AsyncExitStack() as exit_stack:
        storage = await open_storage(settings, exit_stack)
        people = build_people(settings, storage)
        outgoing = await exit_stack.enter_async_context(OutgoingClient(settings.outgoing))
        connections = build_connections(settings, environment, storage, people, outgoing)
        waits = build_waits(settings, storage, people, connections)
        exit_stack.push_async_callback(people.trail.finish_appends)
        sign_ins = build_sign_ins(storage, people, connections, waits)
        yield _assemble_services(
            settings, environment, storage, people, outgoing, connections, waits, sign_ins
        )


def _build_notifier(
    settings: Settings,
    people: PeopleServices,
    outgoing: OutgoingClient,
    connections: ConnectionServices,
    waits: WaitServices,
    notification_channels: NotificationChannels,
) -> RunNotifier:
    page_links = PageLinks(settings.public_url)
    return RunNotifier(
        notification_channels=notification_channels,
        mail_sender=MailSender(settings.notifications, page_links),
        note_poster=NotePoster(outgoing),
        authorization_requests=waits.authorization_requests,
        questions=waits.questions,
        run_records=people.run_records,
        principals=people.principals,
        roles=people.roles,
        catalogue=connections.catalogue,
        page_links=page_links,
    )


def _assemble_services(
    settings: Settings,
    environment: Mapping[str, str],
    storage: StorageServices,
    people: PeopleServices,
    outgoing: OutgoingClient,
    connections: ConnectionServices,
    waits: WaitServices,
    sign_ins: SignInServices,
) -> Services:
    database, vault, principals, trail = storage.database, storage.vault, people.principals, people.trail
    notification_channels = NotificationChannels(database, vault, trail)
    return Services(
        settings=settings,
        environment=environment,
        database=database,
        keyring=storage.keyring,
        data_keys=storage.data_keys,
        vault=vault,
        signing_keys=people.signing_keys,
        principals=principals,
        roles=people.roles,
        policy=people.policy,
        api_tokens=ApiTokens(database, principals, trail, settings.gateway.longest_api_token_life),
        service_principals=ServicePrincipals(principals, trail, settings.public_url),
        run_records=people.run_records,
        identity_verifier=IdentityVerifier(people.signing_keys, people.run_records),
        client_secrets=connections.client_secrets,
        catalogue=connections.catalogue,
        accounts=connections.accounts,
        grants=connections.grants,
        renewals=connections.renewals,
        revocations=connections.revocations,
        trail=trail,
        attempts=RefusedAttempts(trail),
        waiters=waits.waiters,
        authorization_requests=waits.authorization_requests,
        answer_recorder=waits.answer_recorder,
        delegation=waits.delegation,
        authorization_attempts=sign_ins.authorization_attempts,
        pending_device_codes=sign_ins.pending_device_codes,
        sign_in_methods=connections.sign_in_methods,
        sign_ins=sign_ins.sign_ins,
        registrations=connections.registrations,
        idp_sessions=connections.idp_sessions,
        idp_assertions=sign_ins.idp_assertions,
        readiness_checker=ReadinessChecker(database, connections.catalogue, connections.grants),
        questions=waits.questions,
        resource_changes=ResourceChanges(database),
        notification_channels=notification_channels,
        notifier=_build_notifier(settings, people, outgoing, connections, waits, notification_channels),
        outgoing=outgoing,
        webhooks=Webhooks(database, vault, principals, people.roles, trail),
        http_client=outgoing.http_client,
    )
