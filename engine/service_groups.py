"""Builds the services of a process by subject. Each group is built on those before it."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from engine.audit.trail import AuditTrail
from engine.authorization.answer_recorder import AnswerRecorder
from engine.authorization.delegation import Delegation
from engine.authorization.requests import AuthorizationRequests
from engine.connections.catalogue import ConnectionCatalogue
from engine.connections.client_secrets import ClientSecrets
from engine.connections.secret_reader import SecretReader
from engine.db.database import Database
from engine.db.migrate import require_current_schema
from engine.grants.accounts import Accounts
from engine.grants.grant_records import GrantRecords
from engine.grants.grants import Grants
from engine.grants.renewals import GrantRenewals
from engine.grants.revocations import Revocations
from engine.identity.principals import Principals
from engine.identity.roles import Roles
from engine.identity.signing import SigningKeys
from engine.oauth.discovery import Discovery
from engine.oauth.registration import ClientRegistrations
from engine.outgoing.client import OutgoingClient
from engine.policy.policy import Policy, WatchedPolicyFile
from engine.questions.questions import Questions
from engine.runs.records import RunRecords
from engine.settings import Settings
from engine.sign_in.authorization_attempts import AuthorizationAttempts
from engine.sign_in.identity_provider import IdentityProvider
from engine.sign_in.idp_assertions import IdpAssertions
from engine.sign_in.idp_sessions import IdpSessions
from engine.sign_in.method import SignInRecords, SignInResources
from engine.sign_in.methods import SignInMethods
from engine.sign_in.pending_device_codes import PendingDeviceCodes
from engine.sign_in.sign_ins import SignIns
from engine.vault.data_keys import DataKeys
from engine.vault.key_providers import open_key_providers
from engine.vault.keyring import Keyring
from engine.vault.vault import Vault
from engine.waiting.waiters import Waiters


@dataclass(frozen=True, slots=True)
class StorageServices:
    """The database, and the vault that seals what is secret in it."""

    database: Database
    keyring: Keyring | None
    data_keys: DataKeys
    vault: Vault


async def open_storage(settings: Settings, exit_stack: AsyncExitStack) -> StorageServices:
    """Open the database, whose schema has to be current, and the vault. The exit stack closes both."""
    database = Database(settings.database)
    exit_stack.push_async_callback(database.close_connections)
    await require_current_schema(database)
    key_providers, keyring = open_key_providers(settings.vault)
    data_key_database = Database(settings.database.model_copy(update={"pool_size": 1}))
    data_keys = DataKeys(data_key_database, key_providers, settings.vault.data_key_life.total_seconds())
    exit_stack.push_async_callback(data_keys.close_keys)
    await data_keys.open_keys()
    return StorageServices(database, keyring, data_keys, Vault(data_keys, keyring))


@dataclass(frozen=True, slots=True)
class PeopleServices:
    """Who acts, in which runs, and the trail of what they did."""

    signing_keys: SigningKeys
    principals: Principals
    roles: Roles
    policy: Policy
    run_records: RunRecords
    trail: AuditTrail


def build_people(settings: Settings, storage: StorageServices) -> PeopleServices:
    """Build the owners of people, runs and the trail."""
    signing_keys, roles = SigningKeys(storage.database, storage.vault), Roles(storage.database)
    return PeopleServices(
        signing_keys=signing_keys,
        principals=Principals(storage.database),
        roles=roles,
        policy=Policy(WatchedPolicyFile(settings.policy_file).read_current_rules, roles),
        run_records=RunRecords(storage.database),
        trail=AuditTrail(storage.database, signing_keys),
    )


@dataclass(frozen=True, slots=True)
class ConnectionServices:
    """What is declared of the upstream systems, how people sign in to them, and what they granted."""

    client_secrets: ClientSecrets
    catalogue: ConnectionCatalogue
    registrations: ClientRegistrations
    idp_sessions: IdpSessions
    sign_in_methods: SignInMethods
    accounts: Accounts
    grants: Grants
    renewals: GrantRenewals
    revocations: Revocations


def build_connections(
    settings: Settings,
    environment: Mapping[str, str],
    storage: StorageServices,
    people: PeopleServices,
    outgoing: OutgoingClient,
) -> ConnectionServices:
    """Build the owners of connections and grants."""
    database, vault = storage.database, storage.vault
    client_secrets = ClientSecrets(database, vault)
    registrations = ClientRegistrations(database, vault, outgoing, settings.public_url)
    discovery, idp_sessions = Discovery(outgoing), IdpSessions(database, vault)
    sign_in_methods = SignInMethods(
        SignInResources(
            SecretReader(environment, client_secrets),
            discovery,
            outgoing,
            registrations.redirect_uri,
            registrations,
            IdentityProvider(settings.gateway.issuer, discovery, idp_sessions),
        )
    )
    accounts = Accounts(database, people.principals)
    revocations = Revocations(database, vault, sign_in_methods.create_method)
    grant_records = GrantRecords(database, vault, revocations)
    renewals = GrantRenewals(grant_records, sign_in_methods.create_method)
    return ConnectionServices(
        client_secrets=client_secrets,
        catalogue=ConnectionCatalogue(database, client_secrets),
        registrations=registrations,
        idp_sessions=idp_sessions,
        sign_in_methods=sign_in_methods,
        accounts=accounts,
        grants=Grants(
            database=database,
            grant_records=grant_records,
            renewals=renewals,
            accounts=accounts,
            revocations=revocations,
        ),
        renewals=renewals,
        revocations=revocations,
    )


@dataclass(frozen=True, slots=True)
class WaitServices:
    """What runs wait for, and how people answer."""

    waiters: Waiters
    authorization_requests: AuthorizationRequests
    answer_recorder: AnswerRecorder
    questions: Questions
    delegation: Delegation


def build_waits(
    settings: Settings, storage: StorageServices, people: PeopleServices, connections: ConnectionServices
) -> WaitServices:
    """Build the owners of requests, questions and their answers."""
    waiters = Waiters(storage.database, people.run_records)
    authorization_requests = AuthorizationRequests(
        database=storage.database,
        principals=people.principals,
        run_records=people.run_records,
        grants=connections.grants,
        waiters=waiters,
        trail=people.trail,
        wait_limit=settings.wait_limit,
    )
    return WaitServices(
        waiters=waiters,
        authorization_requests=authorization_requests,
        answer_recorder=AnswerRecorder(
            database=storage.database,
            principals=people.principals,
            accounts=connections.accounts,
            grants=connections.grants,
            authorization_requests=authorization_requests,
            waiters=waiters,
            trail=people.trail,
        ),
        questions=Questions(
            database=storage.database,
            principals=people.principals,
            roles=people.roles,
            waiters=waiters,
            trail=people.trail,
            wait_limit=settings.wait_limit,
        ),
        delegation=Delegation(people.principals, people.roles),
    )


@dataclass(frozen=True, slots=True)
class SignInServices:
    """How a person signs in to an upstream system, and what is kept of a sign-in that has begun."""

    authorization_attempts: AuthorizationAttempts
    pending_device_codes: PendingDeviceCodes
    idp_assertions: IdpAssertions
    sign_ins: SignIns


def build_sign_ins(
    storage: StorageServices,
    people: PeopleServices,
    connections: ConnectionServices,
    waits: WaitServices,
) -> SignInServices:
    """Build what the ways to sign in share."""
    sign_in_records = SignInRecords(
        AuthorizationAttempts(storage.database, storage.vault, waits.delegation),
        PendingDeviceCodes(storage.database, storage.vault),
    )
    idp_assertions = IdpAssertions(
        database=storage.database,
        principals=people.principals,
        grants=connections.grants,
        authorization_requests=waits.authorization_requests,
        answer_recorder=waits.answer_recorder,
        trail=people.trail,
        sign_in_methods=connections.sign_in_methods,
    )
    return SignInServices(
        authorization_attempts=sign_in_records.authorization_attempts,
        pending_device_codes=sign_in_records.pending_device_codes,
        idp_assertions=idp_assertions,
        sign_ins=SignIns(
            connections.catalogue,
            people.principals,
            waits.delegation,
            connections.grants,
            waits.authorization_requests,
            waits.answer_recorder,
            people.trail,
            connections.sign_in_methods,
            idp_assertions,
            sign_in_records,
        ),
    )
